//! Ranges of hyperparameters, and the macro that declares an objective together with its config.

use crate::error::InvalidHyperparameter;

type Check = Result<(), InvalidHyperparameter>;

fn require(ok: bool, name: &'static str, value: f64, allowed: &'static str) -> Check {
    if ok {
        Ok(())
    } else {
        Err(InvalidHyperparameter::new(name, value, allowed))
    }
}

pub(crate) fn positive(name: &'static str, value: f64) -> Check {
    let ok = value > 0.0 && value.is_finite();
    require(ok, name, value, "a finite number > 0")
}

pub(crate) fn non_negative(name: &'static str, value: f64) -> Check {
    let ok = value >= 0.0 && value.is_finite();
    require(ok, name, value, "a finite number ≥ 0")
}

/// A label noise rate: at ½ a label says nothing.
pub(crate) fn noise_rate(name: &'static str, value: f64) -> Check {
    let ok = (0.0..0.5).contains(&value);
    require(ok, name, value, "in [0, 0.5)")
}

/// An alternative of one stage that carries numbers of its own.
pub(crate) trait Part {
    fn check(&self) -> Check;
}

pub(crate) fn part(_: &'static str, value: impl Part) -> Check {
    value.check()
}

/// Declares an objective and its config in Burn's idiom: `Config::new().with_x(…).init()`.
///
/// A field reads `name / with_name: Type = default, range;` (the range is a function of this
/// module, or missing where every value is valid). Both structs get the documentation of the
/// fields. Saved configs may lack fields (they take their defaults) but not have unknown ones.
macro_rules! objective {
    (
        $(#[$meta:meta])*
        pub struct $loss:ident from $config:ident {
            $(
                $(#[$field_meta:meta])*
                $field:ident / $with:ident: $ty:ty = $default:expr $(, $range:ident)?;
            )*
        }
    ) => {
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq)]
        pub struct $loss {
            $($field: $ty,)*
        }

        #[doc = concat!("Configuration of [`", stringify!($loss), "`].")]
        #[doc = ""]
        #[doc = "In a file, a missing key takes its default and an unknown key is an error."]
        #[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct $config {
            $(
                $(#[$field_meta])*
                #[doc = concat!("\n\nDefault: `", stringify!($default), "`.")]
                pub $field: $ty,
            )*
        }

        impl Default for $config {
            fn default() -> Self {
                Self { $($field: $default,)* }
            }
        }

        impl burn::config::Config for $config {}

        impl $config {
            /// The defaults.
            pub fn new() -> Self {
                Self::default()
            }

            $(
                $(#[$field_meta])*
                pub fn $with(mut self, $field: $ty) -> Self {
                    self.$field = $field;
                    self
                }
            )*

            /// Builds the objective.
            ///
            /// # Errors
            ///
            /// A value is outside its range; the error names it.
            pub fn try_init(&self) -> Result<$loss, $crate::error::InvalidHyperparameter> {
                $($($crate::hyperparameter::$range(stringify!($field), self.$field)?;)?)*
                Ok($loss { $($field: self.$field,)* })
            }

            #[doc = concat!("Builds the objective; see [`try_init`](", stringify!($config), "::try_init)")]
            /// for values that come from outside the program.
            ///
            /// # Panics
            ///
            /// Panics if a value is outside its range.
            pub fn init(&self) -> $loss {
                self.try_init().unwrap_or_else(|error| panic!("{error}"))
            }
        }
    };
}
pub(crate) use objective;
