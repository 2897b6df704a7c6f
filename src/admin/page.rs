//! The status page: one document with its script and style inside, and a policy that loads nothing else.

use std::sync::LazyLock;

use axum::http::header;
use axum::response::{Html, IntoResponse};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use sha2::{Digest, Sha256};

pub(super) async fn page() -> impl IntoResponse {
    let headers = [
        (header::CONTENT_SECURITY_POLICY, POLICY.as_str()),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-cache"),
    ];
    (headers, Html(PAGE))
}

/// Allows the page's own script and style by their hashes, and requests to its own node.
static POLICY: LazyLock<String> = LazyLock::new(|| {
    format!(
        "default-src 'none'; script-src '{}'; style-src '{}'; connect-src 'self'; base-uri 'none'; \
         form-action 'none'; frame-ancestors 'none'",
        hash_of("script"),
        hash_of("style")
    )
});

/// The policy's hash of the text inside the only element `tag` of the page.
fn hash_of(tag: &str) -> String {
    let inside = PAGE
        .split_once(&format!("<{tag}>"))
        .and_then(|(_, rest)| rest.split_once(&format!("</{tag}>")))
        .map(|(inside, _)| inside)
        .expect("the page has one script and one style");
    format!("sha256-{}", BASE64_STANDARD.encode(Sha256::digest(inside)))
}

const PAGE: &str = concat!(
    include_str!("page/head.html"),
    "<style>",
    include_str!("page/page.css"),
    "</style>",
    include_str!("page/body.html"),
    "<script>",
    include_str!("page/page.js"),
    "</script></body></html>\n"
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_asks_nobody_else_for_anything() {
        for outside in ["http:", "https:", "//", "@import", "url(", "src=", "href="] {
            let shown =
                PAGE.lines().find(|line| line.contains(outside) && !line.trim_start().starts_with("//"));
            assert_eq!(shown, None, "{outside}");
        }
    }

    #[test]
    fn the_page_has_one_style_and_one_script_and_its_policy_knows_both() {
        for tag in ["style", "script"] {
            assert_eq!(PAGE.matches(&format!("<{tag}")).count(), 1);
            assert_eq!(PAGE.matches(&format!("</{tag}>")).count(), 1);
        }
        for inline in ["style=", "onclick", "onload", "innerHTML"] {
            assert!(!PAGE.contains(inline), "{inline}");
        }
        assert_eq!(POLICY.matches("sha256-").count(), 2);
    }
}
