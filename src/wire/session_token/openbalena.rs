//! The tokens of openBalena's API: who logs in by one, and the rights that it is limited to.
//!
//! Follows `processVerifiedJwtPayload` and `middleware` of its src/infra/auth/jwt-passport.ts (API 49), in the order in
//! which they look at the claims: the first kind whose claims are there decides.

use serde_json::{Map, Value};

use super::numbers::number;

/// The bearer of a token of openBalena's API.
#[derive(Clone, PartialEq, Eq)]
pub enum OpenBalenaLogin {
    /// A user, by number, with the secret of the user's row. `None`: that row must have none.
    User { number: u32, secret: Option<String>, rights: LoginRights },
    /// Some roles, by their names, for an actor. With a secret, it must be that of the actor's user.
    Roles { names: Vec<String>, actor: Option<u32>, secret: Option<String> },
    /// The permissions that the token itself has.
    Permissions { names: Vec<String>, actor: i64, rights: LoginRights },
    /// An API key.
    Service { key: String },
}

/// The rights that a login has of those that it names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoginRights {
    All,
    /// The second factor is missing: it may do what the guest may.
    Guest,
}

impl OpenBalenaLogin {
    /// `None` where the API would accept the token as nobody's.
    pub(super) fn read(payload: &Map<String, Value>) -> Option<Self> {
        if payload.get("service").is_some_and(is_true) {
            return Some(Self::Service { key: payload.get("apikey")?.as_str()?.to_owned() });
        }
        if let Some(roles) = given(payload, "roles") {
            return Some(Self::Roles {
                names: texts(roles)?,
                actor: given(payload, "actor").and_then(number).and_then(|actor| actor.try_into().ok()),
                secret: text_or_none(payload, "jwt_secret")?,
            });
        }
        if let Some(Value::Object(access)) = payload.get("access")
            && let (Some(actor), Some(permissions)) = (access.get("actor"), access.get("permissions"))
            && is_true(actor)
            && is_true(permissions)
        {
            let rights = rights(access);
            return Some(Self::Permissions { names: texts(permissions)?, actor: number(actor)?, rights });
        }
        Some(Self::User {
            number: number(payload.get("id")?)?.try_into().ok()?,
            secret: text_or_none(payload, "jwt_secret")?,
            rights: rights(payload),
        })
    }
}

fn rights(claims: &Map<String, Value>) -> LoginRights {
    match claims.get("twoFactorRequired").is_some_and(is_true) {
        true => LoginRights::Guest,
        false => LoginRights::All,
    }
}

/// Returns a claim that is there and not null.
fn given<'a>(claims: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    claims.get(name).filter(|value| !value.is_null())
}

/// Reads a claim that may be absent or null; `None` where it is anything else than a text.
fn text_or_none(claims: &Map<String, Value>, name: &str) -> Option<Option<String>> {
    match given(claims, name) {
        None => Some(None),
        Some(value) => Some(Some(value.as_str()?.to_owned())),
    }
}

/// Reads a list of texts; `None` where it is anything else, or longer than the relay looks through.
fn texts(value: &Value) -> Option<Vec<String>> {
    let list = value.as_array().filter(|list| list.len() <= NAMES_MAX)?;
    list.iter().map(|name| name.as_str().map(str::to_owned)).collect()
}

/// Returns whether JavaScript takes `value` for true.
fn is_true(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(value) => *value,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(_) | Value::Object(_) => true,
    }
}

/// Roles or permissions that one token may list. Each may cost a decision of its own. A longer token is refused.
const NAMES_MAX: usize = 64;
