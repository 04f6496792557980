//! Collections whose copies share what did not change, so that a state of 100,000 ports can be handed out whole.
//!
//! A reader of the model takes a copy of it and a writer changes another; with plain maps each such meeting would copy
//! everything. Here a copy costs one counter of references, and a change copies the way to one leaf and that leaf if
//! somebody else has them too, else nothing. Plain safe Rust: `Arc::make_mut` is all there is to it. One thread changes a
//! collection at a time, any number read their copies.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasher, Hash, RandomState};
use std::ops::Index;
use std::sync::Arc;

/// Ways on from each fork. There are three forks before a leaf: 4,096 leaves, so that a map of 100,000 entries has 24 a leaf.
/// What a change copies at most is this many references three times and one leaf.
const WAYS: usize = 16;
/// Entries of a piece of a [`SharedList`], which a change copies.
const PIECE: usize = 32;

type Leaf<K, V> = HashMap<K, V>;
type Fork<T> = [Option<Arc<T>>; WAYS];
type Root<K, V> = Fork<Fork<Fork<Leaf<K, V>>>>;

/// A hash map that is copied cheaply. Keys that clients choose are fine: the hash has a key of its own.
pub struct SharedMap<K, V> {
    root: Option<Arc<Root<K, V>>>,
    len: usize,
    hasher: RandomState,
}

impl<K, V> Default for SharedMap<K, V> {
    fn default() -> SharedMap<K, V> {
        SharedMap { root: None, len: 0, hasher: RandomState::new() }
    }
}

impl<K, V> Clone for SharedMap<K, V> {
    fn clone(&self) -> SharedMap<K, V> {
        SharedMap { root: self.root.clone(), len: self.len, hasher: self.hasher.clone() }
    }
}

impl<K, V> SharedMap<K, V> {
    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// All entries, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.leaves().flat_map(|leaf| leaf.iter())
    }

    fn leaves(&self) -> impl Iterator<Item = &Arc<Leaf<K, V>>> {
        let forks = self.root.iter().flat_map(|root| root.iter().flatten());
        forks.flat_map(|fork| fork.iter().flatten()).flat_map(|fork| fork.iter().flatten())
    }

    /// All keys, in no order.
    pub fn keys(&self) -> impl Iterator<Item = &K> {
        self.iter().map(|(key, _)| key)
    }

    /// All values, in the order of [`SharedMap::keys`].
    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.iter().map(|(_, value)| value)
    }
}

impl<K: Hash + Eq, V> SharedMap<K, V> {
    /// Which ways lead to a key.
    fn way<Q: Hash + Eq + ?Sized>(&self, key: &Q) -> [usize; 3]
    where
        K: Borrow<Q>,
    {
        let hash = self.hasher.hash_one(key) as usize;
        [hash % WAYS, hash / WAYS % WAYS, hash / WAYS / WAYS % WAYS]
    }

    /// The value of a key.
    pub fn get<Q: Hash + Eq + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        let [first, second, third] = self.way(key);
        self.root.as_ref()?[first].as_ref()?[second].as_ref()?[third].as_ref()?.get(key)
    }

    /// Whether the key is there.
    pub fn contains_key<Q: Hash + Eq + ?Sized>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
    {
        self.get(key).is_some()
    }
}

impl<K: Hash + Eq + Clone, V: Clone> SharedMap<K, V> {
    /// The leaf of a key, ours alone.
    fn leaf_mut<Q: Hash + Eq + ?Sized>(&mut self, key: &Q) -> &mut Leaf<K, V>
    where
        K: Borrow<Q>,
    {
        let [first, second, third] = self.way(key);
        let fork = Arc::make_mut(self.root.get_or_insert_default());
        let fork = Arc::make_mut(fork[first].get_or_insert_default());
        let fork = Arc::make_mut(fork[second].get_or_insert_default());
        Arc::make_mut(fork[third].get_or_insert_default())
    }

    /// Enters a value; answers what was there.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        let old = self.leaf_mut(&key).insert(key, value);
        self.len += usize::from(old.is_none());
        old
    }

    /// Takes a value out.
    pub fn remove<Q: Hash + Eq + ?Sized>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        // A key that is not there copies nothing.
        self.get(key)?;
        self.len -= 1;
        self.leaf_mut(key).remove(key)
    }

    /// The value of a key, a default one if there was none.
    pub fn entry_mut(&mut self, key: &K) -> &mut V
    where
        V: Default,
    {
        if !self.contains_key(key) {
            self.insert(key.clone(), V::default());
        }
        self.leaf_mut(key).get_mut(key).expect("it was inserted if it was missing")
    }
}

impl<K: Hash + Eq, V: PartialEq> PartialEq for SharedMap<K, V> {
    fn eq(&self, other: &SharedMap<K, V>) -> bool {
        self.len == other.len && self.iter().all(|(key, value)| other.get(key) == Some(value))
    }
}

impl<K: fmt::Debug, V: fmt::Debug> fmt::Debug for SharedMap<K, V> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_map().entries(self.iter()).finish()
    }
}

impl<K: Hash + Eq + Borrow<Q>, Q: Hash + Eq + ?Sized, V> Index<&Q> for SharedMap<K, V> {
    type Output = V;

    /// # Panics
    /// If the key is not there, as for the standard maps.
    fn index(&self, key: &Q) -> &V {
        self.get(key).expect("the caller knows that the key is there")
    }
}

/// Things in the order of their serials, copied cheaply. New serials are most often the highest, so that pieces are full.
#[derive(Clone)]
pub struct SharedList<T> {
    /// None is empty; each ends before the next begins.
    pieces: Vec<Arc<Vec<(u64, T)>>>,
}

impl<T> Default for SharedList<T> {
    fn default() -> SharedList<T> {
        SharedList { pieces: Vec::new() }
    }
}

impl<T> SharedList<T> {
    /// All by serial.
    pub fn iter(&self) -> impl Iterator<Item = &T> + use<'_, T> {
        self.pieces.iter().flat_map(|piece| piece.iter()).map(|(_, item)| item)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.pieces.iter().map(|piece| piece.len()).sum()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// The piece in which a serial is or belongs.
    fn piece_of(&self, serial: u64) -> usize {
        self.pieces.partition_point(|piece| piece[0].0 <= serial).saturating_sub(1)
    }
}

impl<T: Clone> SharedList<T> {
    /// Enters one, over the one of that serial if there is one.
    pub fn insert(&mut self, serial: u64, item: T) {
        let at = self.piece_of(serial);
        let is_last = at + 1 >= self.pieces.len();
        let Some(piece) = self.pieces.get_mut(at) else {
            self.pieces.push(Arc::new(vec![(serial, item)]));
            return;
        };
        match piece.binary_search_by_key(&serial, |entry| entry.0) {
            Ok(found) => Arc::make_mut(piece)[found].1 = item,
            Err(place) if is_last && place == piece.len() && place >= PIECE => {
                self.pieces.push(Arc::new(vec![(serial, item)]));
            }
            Err(place) => {
                let piece = Arc::make_mut(piece);
                piece.insert(place, (serial, item));
                if piece.len() > PIECE {
                    let rest = piece.split_off(PIECE / 2);
                    self.pieces.insert(at + 1, Arc::new(rest));
                }
            }
        }
    }

    /// Takes the one of a serial out, if it is there.
    pub fn remove(&mut self, serial: u64) {
        let at = self.piece_of(serial);
        let Some(piece) = self.pieces.get_mut(at) else { return };
        let Ok(found) = piece.binary_search_by_key(&serial, |entry| entry.0) else { return };
        if piece.len() == 1 {
            self.pieces.remove(at);
        } else {
            Arc::make_mut(piece).remove(found);
        }
    }
}

impl<T: PartialEq> PartialEq for SharedList<T> {
    fn eq(&self, other: &SharedList<T>) -> bool {
        self.pieces.iter().flat_map(|piece| piece.iter()).eq(other.pieces.iter().flat_map(|piece| piece.iter()))
    }
}

impl<T: fmt::Debug> fmt::Debug for SharedList<T> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_map()
            .entries(self.pieces.iter().flat_map(|piece| piece.iter().map(|(serial, item)| (serial, item))))
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        #[test]
        fn a_shared_map_is_a_map_and_its_copies_stay_as_they_were(
            steps in prop::collection::vec((0u16..300, prop::option::of(0u8..4), any::<bool>()), 0..600)
        ) {
            let mut map = SharedMap::<String, u8>::default();
            let mut oracle = HashMap::new();
            let mut copies = Vec::new();
            for (key, value, is_copied) in steps {
                let key = key.to_string();
                match value {
                    Some(value) => prop_assert_eq!(map.insert(key.clone(), value), oracle.insert(key, value)),
                    None => prop_assert_eq!(map.remove(&*key), oracle.remove(&key)),
                }
                if is_copied && copies.len() < 4 {
                    copies.push((map.clone(), oracle.clone()));
                }
            }
            copies.push((map, oracle));
            for (map, oracle) in copies {
                prop_assert_eq!(map.len(), oracle.len());
                prop_assert_eq!(map.is_empty(), oracle.is_empty());
                prop_assert_eq!(&map.iter().map(|(key, value)| (key.clone(), *value)).collect::<HashMap<_, _>>(), &oracle);
                for (key, value) in &oracle {
                    prop_assert_eq!(&map[&**key], value);
                }
                let mut again = SharedMap::default();
                for (key, value) in &oracle {
                    again.insert(key.clone(), *value);
                }
                prop_assert!(again == map, "equal whatever the hash");
                *again.entry_mut(&"another".to_owned()) = 1;
                prop_assert!(again != map);
            }
        }

        #[test]
        fn a_shared_list_is_in_the_order_of_serials_and_its_copies_stay_as_they_were(
            start in 0u64..500,
            steps in prop::collection::vec((0u64..700, any::<bool>(), any::<bool>()), 0..400)
        ) {
            let mut list = SharedList::default();
            let mut oracle: BTreeMap<u64, u64> = (0..start).map(|serial| (serial, serial)).collect();
            oracle.iter().for_each(|(serial, id)| list.insert(*serial, *id));
            let mut copies = Vec::new();
            for (at, (serial, is_removed, is_copied)) in steps.into_iter().enumerate() {
                if is_removed {
                    list.remove(serial);
                    oracle.remove(&serial);
                } else {
                    list.insert(serial, at as u64);
                    oracle.insert(serial, at as u64);
                }
                if is_copied && copies.len() < 4 {
                    copies.push((list.clone(), oracle.clone()));
                }
            }
            copies.push((list, oracle));
            for (list, oracle) in copies {
                prop_assert_eq!(list.iter().collect::<Vec<_>>(), oracle.values().collect::<Vec<_>>());
                prop_assert_eq!(list.is_empty(), oracle.is_empty());
                prop_assert!(list.pieces.iter().all(|piece| (1..=PIECE).contains(&piece.len())));
                let mut again = SharedList::default();
                oracle.iter().rev().for_each(|(serial, id)| again.insert(*serial, *id));
                prop_assert!(again == list, "equal whatever the pieces");
            }
        }
    }

    #[test]
    fn a_change_copies_one_leaf_of_what_is_shared() {
        let mut map = SharedMap::<u64, u64>::default();
        for at in 0..10_000 {
            map.insert(at, at);
        }
        let copy = map.clone();
        map.insert(7, 8);
        map.remove(&10_001);
        let differing =
            std::iter::zip(map.leaves(), copy.leaves()).filter(|(ours, theirs)| !Arc::ptr_eq(ours, theirs)).count();
        assert_eq!(differing, 1);
        assert_eq!((map[&7], copy[&7]), (8, 7));
    }
}
