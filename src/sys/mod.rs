//! Everything that talks to the kernel below what std offers, and all unsafe code of this project.
#![allow(unsafe_code)]

pub mod root;
