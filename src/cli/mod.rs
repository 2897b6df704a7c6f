//! The command line: one file per command.

pub mod device;
pub mod grant;
pub mod output;
pub mod principal;
pub mod store;
pub mod token;
mod values;

#[cfg(test)]
mod support;
