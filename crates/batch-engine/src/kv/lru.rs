//! The blocks that are kept, in the order in which they were last used.

/// Says that there is no neighbour.
const NONE: u32 = u32::MAX;

/// A doubly linked list of blocks, each in it at most once; all operations take constant time and no memory.
#[derive(Debug)]
pub(super) struct LruList {
    before: Vec<u32>,
    after: Vec<u32>,
    first: u32,
    last: u32,
    len: usize,
}

impl LruList {
    /// An empty list for blocks below `blocks`.
    pub(super) fn new(blocks: usize) -> Self {
        Self {
            before: vec![NONE; blocks],
            after: vec![NONE; blocks],
            first: NONE,
            last: NONE,
            len: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Adds a block that is not in the list as the one used last.
    pub(super) fn push_back(&mut self, block: u32) {
        self.before[block as usize] = self.last;
        self.after[block as usize] = NONE;
        match self.last {
            NONE => self.first = block,
            last => self.after[last as usize] = block,
        }
        self.last = block;
        self.len += 1;
    }

    /// Takes the block that was not used for the longest time.
    pub(super) fn pop_front(&mut self) -> Option<u32> {
        let first = Some(self.first).filter(|&first| first != NONE)?;
        self.remove(first);
        Some(first)
    }

    /// Takes out a block that is in the list.
    pub(super) fn remove(&mut self, block: u32) {
        let (before, after) = (self.before[block as usize], self.after[block as usize]);
        match before {
            NONE => self.first = after,
            before => self.after[before as usize] = after,
        }
        match after {
            NONE => self.last = before,
            after => self.before[after as usize] = before,
        }
        self.len -= 1;
    }

    /// From the block that goes first to the one that goes last.
    #[cfg(test)]
    pub(super) fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        let known = |block: u32| Some(block).filter(|&block| block != NONE);
        std::iter::successors(known(self.first), move |&block| known(self.after[block as usize]))
    }
}
