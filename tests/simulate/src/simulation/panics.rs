//! Panics of a simulated worker: sessions catch them, and a history must have none.

use std::cell::RefCell;
use std::sync::Once;

thread_local! {
    static SEEN: RefCell<Option<String>> = const { RefCell::new(None) };
    static IS_WATCHED: RefCell<bool> = const { RefCell::new(false) };
}

/// Records the panics of this thread from now on, instead of printing them.
pub fn watch() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let previous = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if IS_WATCHED.with_borrow(|watched| *watched) {
                SEEN.with_borrow_mut(|seen| {
                    seen.get_or_insert_with(|| info.to_string());
                });
            } else {
                previous(info);
            }
        }));
    });
    IS_WATCHED.with_borrow_mut(|watched| *watched = true);
}

/// Takes the first panic since the last call.
pub fn take() -> Option<String> {
    SEEN.with_borrow_mut(Option::take)
}

/// Prints panics again.
pub fn unwatch() {
    IS_WATCHED.with_borrow_mut(|watched| *watched = false);
}
