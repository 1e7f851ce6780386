//! A list of shared values that are added and removed. [`ArcList::for_each`] visits a value without the list's lock, so a long visit delays
//! no other processor.
#![forbid(unsafe_code)]

use alloc::{sync::Arc, vec::Vec};
use core::sync::atomic::{AtomicUsize, Ordering};

use crate::sync::{Mutex, MutexGuard};

/// The list. New values are at its end.
pub struct ArcList<T> {
    values: Mutex<Vec<Arc<T>>>,
    /// Their number, changed under the lock.
    len: AtomicUsize,
}

impl<T> Default for ArcList<T> {
    fn default() -> Self {
        Self { values: Mutex::new(Vec::new()), len: AtomicUsize::new(0) }
    }
}

impl<T> ArcList<T> {
    /// The first value for which `is_it` holds, which must be quick.
    pub fn find(&self, is_it: impl Fn(&T) -> bool) -> Option<Arc<T>> {
        self.values.lock().iter().find(|value| is_it(value)).cloned()
    }

    /// Adds a value.
    pub fn add(&self, value: Arc<T>) {
        let mut values = self.values.lock();
        values.push(value);
        self.len.store(values.len(), Ordering::Release);
    }

    /// Removes a value.
    pub fn remove(&self, value: &Arc<T>) {
        let mut values = self.values.lock();
        values.retain(|other| !Arc::ptr_eq(other, value));
        self.len.store(values.len(), Ordering::Release);
    }

    /// Whether there are no values, without the lock.
    pub fn is_empty(&self) -> bool {
        self.len.load(Ordering::Acquire) == 0
    }

    /// Calls `look` with each value that is in the list during the whole call, without the list's lock. Values that are added meanwhile may
    /// be left out.
    pub fn for_each(&self, mut look: impl FnMut(&T)) {
        // Backwards: where a value is removed, only values that were looked at already move to a place that comes next.
        let mut at = self.values.lock().len();
        while let Some(next) = at.checked_sub(1) {
            at = next;
            let value = self.values.lock().get(at).cloned();
            value.iter().for_each(|value| look(value));
        }
    }

    /// The locked list, if no other processor holds the lock or waits for it.
    pub fn try_lock(&self) -> Option<MutexGuard<'_, Vec<Arc<T>>>> {
        self.values.try_lock()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(values: impl IntoIterator<Item = u32>) -> ArcList<u32> {
        let list = ArcList::default();
        values.into_iter().for_each(|value| list.add(Arc::new(value)));
        list
    }

    #[test]
    fn the_list_is_free_while_a_value_is_looked_at() {
        let (list, mut looks) = (of(0..3), 0);
        list.for_each(|_| {
            assert!(list.try_lock().is_some());
            looks += 1;
        });
        assert_eq!(looks, 3);
    }

    #[test]
    fn a_list_is_empty_before_the_first_value_and_after_the_last() {
        let list = ArcList::default();
        assert!(list.is_empty());
        let (one, other) = (Arc::new(1), Arc::new(2));
        list.add(Arc::clone(&one));
        list.add(Arc::clone(&other));
        list.remove(&one);
        assert!(!list.is_empty());
        list.remove(&other);
        assert!(list.is_empty());
    }

    #[test]
    fn values_that_go_meanwhile_hide_no_other() {
        for (removed, during) in (0..5).flat_map(|removed| (0..5).map(move |during| (removed, during))) {
            let (list, mut seen) = (of(0..5), Vec::new());
            list.for_each(|&value| {
                if value == during {
                    list.find(|other| *other == removed).iter().for_each(|value| list.remove(value));
                }
                seen.push(value);
            });
            let stays = |value: &u32| *value != removed;
            assert!((0..5).filter(stays).all(|value| seen.contains(&value)), "{removed} goes at {during}: {seen:?}");
        }
    }
}
