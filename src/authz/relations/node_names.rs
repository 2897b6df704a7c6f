//! The names of nodes that hold devices, each of them once and known by two bytes.

use std::num::NonZeroU16;

use hashbrown::HashMap;

#[derive(Clone, Default)]
pub(super) struct NodeNames {
    names: Vec<Box<str>>,
    numbers: HashMap<Box<str>, NodeNumber>,
}

/// Index of a name in [`NodeNames`], counted from 1.
#[derive(Clone, Copy)]
pub(super) struct NodeNumber(NonZeroU16);

impl NodeNames {
    /// Makes `name` known. Names stay known until the next full build, up to as many as there are numbers.
    pub(super) fn add(&mut self, name: &str) {
        let next = u16::try_from(self.names.len() + 1).ok().and_then(NonZeroU16::new);
        if let Some(next) = next
            && !self.numbers.contains_key(name)
        {
            self.names.push(name.into());
            self.numbers.insert(name.into(), NodeNumber(next));
        }
    }

    pub(super) fn number(&self, name: &str) -> Option<NodeNumber> {
        self.numbers.get(name).copied()
    }

    pub(super) fn name(&self, NodeNumber(number): NodeNumber) -> &str {
        &self.names[usize::from(number.get()) - 1]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_known_by_one_number_and_a_name_too_many_by_none() {
        let mut names = NodeNames::default();
        for _ in 0..2 {
            (0..70_000).for_each(|node| names.add(&format!("node-{node}")));
        }
        assert_eq!(names.names.len(), usize::from(u16::MAX));
        for node in [0, 1, 65_534] {
            let name = format!("node-{node}");
            assert_eq!(names.number(&name).map(|number| names.name(number)), Some(&*name));
        }
        assert!(names.number("node-65535").is_none());
    }
}
