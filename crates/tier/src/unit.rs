//! Names: a unit of residency, a slot, and the parts of a unit.

use std::fmt;
use std::ops::{BitAnd, BitOr, BitOrAssign, Sub};

use serde::{Deserialize, Serialize};

/// One expert of one layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct UnitId {
    /// Index among the layers that have experts, from 0 (not the model's layer number).
    pub layer: u32,
    /// Index of the expert in its layer.
    pub expert: u32,
}

/// A slot's index in its pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SlotId(pub u32);

/// A set of the slices that make up an expert.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Parts(u8);

impl Parts {
    /// No part.
    pub const EMPTY: Self = Self(0);
    /// The gate projection.
    pub const GATE: Self = Self(1);
    /// The up projection.
    pub const UP: Self = Self(2);
    /// The down projection.
    pub const DOWN: Self = Self(4);
    /// Gate and up projections fused into one tensor.
    pub const GATE_UP: Self = Self(8);
    /// Every part there is; a table reads it as "all that this layer has".
    pub const ALL: Self = Self(15);

    const NAMES: [(Self, &'static str); 4] =
        [(Self::GATE, "gate"), (Self::UP, "up"), (Self::DOWN, "down"), (Self::GATE_UP, "gate_up")];

    /// The set with these bits; bits that name no part are dropped.
    pub const fn from_bits(bits: u8) -> Self {
        Self(bits & Self::ALL.0)
    }

    /// The set as a bit mask.
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// Whether the set has no part.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether every part of `other` is in this set.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// The number of parts in the set.
    pub const fn count(self) -> u32 {
        self.0.count_ones()
    }

    /// The parts one by one, in the order gate, up, down, gate_up.
    pub fn iter(self) -> impl Iterator<Item = Self> {
        Self::NAMES.into_iter().map(|(part, _)| part).filter(move |&part| self.contains(part))
    }
}

impl BitOr for Parts {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitOrAssign for Parts {
    fn bitor_assign(&mut self, other: Self) {
        self.0 |= other.0;
    }
}

impl BitAnd for Parts {
    type Output = Self;
    fn bitand(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

/// The parts of the left set that are not in the right one.
impl Sub for Parts {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
}

impl fmt::Debug for Parts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut names = Self::NAMES.iter().filter(|&&(part, _)| self.contains(part));
        let first = names.next().map_or("", |(_, name)| name);
        write!(f, "{{{first}")?;
        names.try_for_each(|(_, name)| write!(f, ", {name}"))?;
        f.write_str("}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn set_operations() {
        let both = Parts::GATE | Parts::DOWN;
        assert!(both.contains(Parts::GATE) && !both.contains(Parts::UP));
        assert_eq!(both - Parts::GATE, Parts::DOWN);
        assert_eq!(both & Parts::UP, Parts::EMPTY);
        assert_eq!(both.count(), 2);
        assert_eq!(both.iter().collect::<Vec<_>>(), [Parts::GATE, Parts::DOWN]);
        assert_eq!(Parts::from_bits(0xff), Parts::ALL);
        assert_eq!(format!("{both:?}"), "{gate, down}");
    }
}
