//! The ordered key and value pairs of a GGUF header.

use std::collections::HashMap;
use std::fmt;

use crate::value::{Array, Value};

/// Metadata in the order of the file, each key once.
#[derive(Clone, Default)]
pub struct Metadata {
    entries: Vec<(String, Value)>,
    index: HashMap<String, usize>,
}

impl Metadata {
    /// No metadata.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The value of a key.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Value> {
        let position = *self.index.get(key)?;
        self.entries.get(position).map(|(_, value)| value)
    }

    /// All pairs in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Value)> {
        self.entries.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// Number of pairs.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are no pairs.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Sets a key, in its old place if it was there and at the end otherwise; returns the old value.
    pub fn insert(&mut self, key: impl Into<String>, value: impl Into<Value>) -> Option<Value> {
        let (key, value) = (key.into(), value.into());
        if let Some((_, old)) = self.index.get(&key).and_then(|&at| self.entries.get_mut(at)) {
            return Some(std::mem::replace(old, value));
        }
        self.index.insert(key.clone(), self.entries.len());
        self.entries.push((key, value));
        None
    }

    /// Removes a key; returns its value.
    pub fn remove(&mut self, key: &str) -> Option<Value> {
        let position = self.index.remove(key)?;
        let (_, value) = self.entries.remove(position);
        for later in self.index.values_mut().filter(|at| **at > position) {
            *later -= 1;
        }
        Some(value)
    }

    /// An integer of any width that fits a `u32`.
    #[must_use]
    pub fn u32(&self, key: &str) -> Option<u32> {
        self.get(key)?.as_u32()
    }

    /// An integer of any width that fits a `u64`.
    #[must_use]
    pub fn u64(&self, key: &str) -> Option<u64> {
        self.get(key)?.as_u64()
    }

    /// An integer of any width that fits an `i64`.
    #[must_use]
    pub fn i64(&self, key: &str) -> Option<i64> {
        self.get(key)?.as_i64()
    }

    /// A floating-point number of either width.
    #[must_use]
    pub fn f32(&self, key: &str) -> Option<f32> {
        self.get(key)?.as_f32()
    }

    /// A truth value.
    #[must_use]
    pub fn bool(&self, key: &str) -> Option<bool> {
        self.get(key)?.as_bool()
    }

    /// A string that is UTF-8.
    #[must_use]
    pub fn str(&self, key: &str) -> Option<&str> {
        self.get(key)?.as_str()
    }

    /// An array.
    #[must_use]
    pub fn array(&self, key: &str) -> Option<&Array> {
        self.get(key)?.as_array()
    }
}

impl fmt::Debug for Metadata {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl PartialEq for Metadata {
    fn eq(&self, other: &Self) -> bool {
        self.entries == other.entries
    }
}

impl<K: Into<String>, V: Into<Value>> FromIterator<(K, V)> for Metadata {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(pairs: I) -> Self {
        let mut metadata = Self::new();
        for (key, value) in pairs {
            metadata.insert(key, value);
        }
        metadata
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_survives_replacing_and_removing() {
        let mut metadata: Metadata =
            [("a", 1_u32), ("b", 2), ("c", 3), ("d", 4)].into_iter().collect();
        assert_eq!(metadata.insert("b", 20_u64), Some(Value::U32(2)));
        assert_eq!(metadata.remove("a"), Some(Value::U32(1)));
        assert_eq!(metadata.remove("a"), None);
        metadata.insert("a", "last");
        let keys: Vec<_> = metadata.iter().map(|(key, _)| key).collect();
        assert_eq!(keys, ["b", "c", "d", "a"]);
        assert_eq!(metadata.u32("b"), Some(20));
        assert_eq!(metadata.u32("d"), Some(4));
        assert_eq!(metadata.str("a"), Some("last"));
    }

    #[test]
    fn getters_take_any_width_that_fits() {
        let mut metadata = Metadata::new();
        metadata.insert("small", 7_i8);
        metadata.insert("negative", -1_i32);
        metadata.insert("large", u64::from(u32::MAX) + 1);
        metadata.insert("double", 0.5_f64);
        assert_eq!(metadata.u32("small"), Some(7));
        assert_eq!(metadata.u64("negative"), None);
        assert_eq!(metadata.i64("negative"), Some(-1));
        assert_eq!(metadata.u32("large"), None);
        assert_eq!(metadata.u64("large"), Some(1 << 32));
        assert_eq!(metadata.f32("double"), Some(0.5));
        assert_eq!(metadata.str("small"), None);
        assert_eq!(metadata.u32("missing"), None);
    }
}
