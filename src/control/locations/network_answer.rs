//! The answer of the network about devices that the store has lost sight of.

/// See the module.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::control) enum NetworkAnswer {
    /// Devices were asked, and none has answered yet.
    Asked,
    Silent,
    /// No device could be asked: each former address is another device's by now, or may not be dialled. This says nothing
    /// for or against the store.
    Unasked,
    Answers {
        answered: usize,
        sampled: usize,
    },
}
