//! Joining neighbours into longer tokens, the best union first: what SentencePiece and byte-pair encoding have in common.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

/// A piece of a text and its neighbours; pieces that were taken into another one are left behind empty.
#[derive(Debug, Clone, Copy)]
pub(super) struct Piece {
    /// Where it is in the text, in bytes.
    pub(super) start: usize,
    pub(super) end: usize,
    /// The token that it is, if there is one.
    pub(super) token: Option<u32>,
    before: Option<usize>,
    after: Option<usize>,
}

impl Piece {
    fn len(&self) -> usize {
        self.end - self.start
    }
}

/// What two neighbours can become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Union {
    /// The greatest goes first; among equals, the leftmost.
    pub(super) priority: i64,
    pub(super) token: u32,
}

/// A union that may be made, unless something else has happened to its pieces before its turn comes.
#[derive(PartialEq, Eq)]
struct Candidate {
    union: Union,
    left: usize,
    right: usize,
    /// Bytes of both when it was found: pieces only grow, so it is stale when they are more, or when one is empty.
    len: usize,
}

impl Ord for Candidate {
    fn cmp(&self, other: &Self) -> Ordering {
        let rank = |candidate: &Self| (candidate.union.priority, std::cmp::Reverse(candidate.left));
        rank(self).cmp(&rank(other))
    }
}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Working memory for one text after the other.
#[derive(Default)]
pub(super) struct Merger {
    pieces: Vec<Piece>,
    queue: BinaryHeap<Candidate>,
}

impl Merger {
    /// Begins a text.
    pub(super) fn clear(&mut self) {
        self.pieces.clear();
        self.queue.clear();
    }

    /// Appends a piece behind all others.
    pub(super) fn push(&mut self, start: usize, end: usize, token: Option<u32>) {
        let index = self.pieces.len();
        if let Some(last) = self.pieces.last_mut() {
            last.after = Some(index);
        }
        self.pieces.push(Piece {
            start,
            end,
            token,
            before: index.checked_sub(1),
            after: None,
        });
    }

    /// Joins neighbours until no two of them have a union.
    pub(super) fn merge(&mut self, union: impl Fn(&Piece, &Piece) -> Option<Union>) {
        let Self { pieces, queue } = self;
        let candidate = |pieces: &[Piece], left: usize, right: usize| {
            let (first, second) = (&pieces[left], &pieces[right]);
            Some(Candidate {
                union: union(first, second)?,
                left,
                right,
                len: first.len() + second.len(),
            })
        };
        queue.extend((1..pieces.len()).filter_map(|right| candidate(pieces, right - 1, right)));
        while let Some(Candidate {
            union,
            left,
            right,
            len,
        }) = queue.pop()
        {
            let (first, second) = (pieces[left], pieces[right]);
            if first.len() == 0 || second.len() == 0 || first.len() + second.len() != len {
                continue;
            }
            pieces[left] = Piece {
                end: second.end,
                token: Some(union.token),
                after: second.after,
                ..first
            };
            pieces[right].start = second.end;
            if let Some(after) = second.after {
                pieces[after].before = Some(left);
                queue.extend(candidate(pieces, left, after));
            }
            if let Some(before) = first.before {
                queue.extend(candidate(pieces, before, left));
            }
        }
    }

    /// What is left, from the left to the right.
    pub(super) fn pieces(&self) -> impl Iterator<Item = &Piece> {
        self.pieces.iter().filter(|piece| piece.len() > 0)
    }
}
