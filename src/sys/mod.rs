//! Everything that talks to the kernel below what std offers, all unsafe code of this project, and the threads of
//! its services.
#![allow(unsafe_code)]

pub mod activation;
pub mod address;
pub mod atomic;
pub mod backlog;
pub mod buffers;
pub mod confine;
pub mod cpu;
mod enter;
pub mod epoch_cell;
pub mod features;
pub mod kernel_tls;
pub mod launcher;
pub mod memory;
pub mod monotonic;
pub mod packets;
pub mod pipe;
mod receive;
pub mod ring;
mod ring_rules;
pub mod service_thread;
pub mod silence;
pub mod socket;
pub mod wake;
