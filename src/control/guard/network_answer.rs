//! The answer of the network about devices that the store has lost sight of.

/// See the module.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::control) enum NetworkAnswer {
    /// Devices were asked, and none has answered yet.
    Asked,
    Silent,
    Answers {
        answered: usize,
        sampled: usize,
    },
}
