//! What to do about a queen who drops the beats.

use shared_contract::DropReason;

/// What a person can do about it. Fits after "; ".
pub(crate) fn remedy(reason: DropReason) -> &'static str {
    match reason {
        DropReason::Conflict => "give each process its own id, and its own state folder where it keeps one there",
        DropReason::OlderIncarnation => {
            "end one of the two or give it another id; if only this one runs, its host's clock stepped back: set it right \
             and start it again"
        }
        DropReason::Departed => {
            "this process has told her that it lives, and she does not believe it: start it again, and give it another id if \
             that does not help"
        }
        DropReason::Unknown => "this program may be older than the queen: update it",
        DropReason::Duplicate | DropReason::Reordered => "nothing has to be done",
    }
}
