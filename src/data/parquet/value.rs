//! A value of a column as JSON, by the column's type.

use ::parquet::basic::{ConvertedType, LogicalType, TimeUnit};
use ::parquet::data_type::{ByteArray, Decimal};
use ::parquet::record::Field;
use ::parquet::schema::types::ColumnDescriptor;
use burn::tensor::f16;

use crate::data::json::{Json, read_value};

/// The meaning of a column's numbers or bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Meaning {
    /// Numbers as they are; bytes are no text.
    Plain,
    Unsigned,
    Decimal {
        precision: i32,
        scale: i32,
    },
    Date,
    Time(Unit),
    Timestamp(Unit),
    Text,
    Json,
    Float16,
    Uuid,
    /// Two's complement and IEEE numbers alone have this width.
    Interval,
}

/// A fraction of a second, as the number of its digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unit {
    Milli,
    Micro,
    Nano,
}

impl From<&TimeUnit> for Unit {
    fn from(unit: &TimeUnit) -> Self {
        match unit {
            TimeUnit::MILLIS => Self::Milli,
            TimeUnit::MICROS => Self::Micro,
            TimeUnit::NANOS => Self::Nano,
        }
    }
}

impl Meaning {
    pub(super) fn of(column: &ColumnDescriptor) -> Self {
        match column.logical_type_ref() {
            Some(LogicalType::Time(time)) => return Self::Time((&time.unit).into()),
            Some(LogicalType::Timestamp(time)) => return Self::Timestamp((&time.unit).into()),
            Some(LogicalType::Float16) => return Self::Float16,
            Some(LogicalType::Uuid) => return Self::Uuid,
            _ => {}
        }
        // The logical type implies it.
        match column.converted_type() {
            ConvertedType::UTF8 | ConvertedType::ENUM => Self::Text,
            ConvertedType::JSON => Self::Json,
            ConvertedType::DECIMAL => Self::Decimal {
                precision: column.type_precision(),
                scale: column.type_scale(),
            },
            ConvertedType::DATE => Self::Date,
            ConvertedType::TIME_MILLIS => Self::Time(Unit::Milli),
            ConvertedType::TIME_MICROS => Self::Time(Unit::Micro),
            ConvertedType::TIMESTAMP_MILLIS => Self::Timestamp(Unit::Milli),
            ConvertedType::TIMESTAMP_MICROS => Self::Timestamp(Unit::Micro),
            ConvertedType::UINT_8
            | ConvertedType::UINT_16
            | ConvertedType::UINT_32
            | ConvertedType::UINT_64 => Self::Unsigned,
            ConvertedType::INTERVAL => Self::Interval,
            _ => Self::Plain,
        }
    }

    pub(super) fn int32(self, number: i32) -> Json {
        match self {
            #[allow(clippy::cast_sign_loss, reason = "the same bits, which are unsigned")]
            Self::Unsigned => Json::Number((number as u32).into()),
            Self::Decimal { precision, scale } => {
                decimal(Decimal::from_i32(number, precision, scale))
            }
            _ => self.int64(number.into()),
        }
    }

    pub(super) fn int64(self, number: i64) -> Json {
        match self {
            #[allow(clippy::cast_sign_loss, reason = "the same bits, which are unsigned")]
            Self::Unsigned => Json::Number((number as u64).into()),
            Self::Decimal { precision, scale } => {
                decimal(Decimal::from_i64(number, precision, scale))
            }
            Self::Date => date(number),
            Self::Time(unit) => time(number, unit),
            Self::Timestamp(unit) => timestamp(number, unit),
            _ => Json::Number(number.into()),
        }
    }

    pub(super) fn bytes(self, bytes: ByteArray) -> Json {
        match self {
            Self::Text => match String::from_utf8(bytes.data().to_vec()) {
                Ok(text) => Json::String(text),
                Err(_) => Json::NotJson("a string that is not UTF-8".to_owned()),
            },
            Self::Json => read_value(bytes.data())
                .unwrap_or_else(|error| Json::NotJson(format!("JSON that is none ({error})"))),
            Self::Decimal { precision, scale } => {
                decimal(Decimal::from_bytes(bytes, precision, scale))
            }
            Self::Float16 => match *bytes.data() {
                [low, high] => float(f16::from_le_bytes([low, high]).into()),
                _ => Json::NotJson("bytes".to_owned()),
            },
            Self::Uuid if bytes.len() == 16 => Json::String(uuid(bytes.data())),
            Self::Interval => Json::NotJson("an interval of time".to_owned()),
            _ => Json::NotJson("bytes, which are no text".to_owned()),
        }
    }
}

pub(super) fn float(number: f64) -> Json {
    match Json::from(number) {
        Json::Null if number.is_nan() => Json::NotJson("NaN".to_owned()),
        Json::Null if number > 0.0 => Json::NotJson("Infinity".to_owned()),
        Json::Null => Json::NotJson("-Infinity".to_owned()),
        number => number,
    }
}

/// The number that a JSON file with the same digits has.
fn decimal(number: Decimal) -> Json {
    let digits = Field::Decimal(number).to_string();
    let digits = digits.strip_suffix('.').unwrap_or(&digits);
    match serde_json::from_str(digits) {
        Ok(number) => Json::Number(number),
        Err(_) => Json::NotJson(format!("{digits}, which is beyond f64")),
    }
}

/// Seconds that `chrono`, which Parquet writes dates with, has a date for.
const SECONDS: std::ops::RangeInclusive<i64> = -8_000_000_000_000..=8_000_000_000_000;

fn date(days: i64) -> Json {
    let seconds = days.saturating_mul(86_400);
    match i32::try_from(days) {
        Ok(days) if SECONDS.contains(&seconds) => Json::String(Field::Date(days).to_string()),
        _ => Json::NotJson(format!("a date {days} days after 1970")),
    }
}

pub(super) fn timestamp(number: i64, unit: Unit) -> Json {
    let of_a_second = match unit {
        Unit::Milli => 1_000,
        Unit::Micro => 1_000_000,
        Unit::Nano => 1_000_000_000,
    };
    if !SECONDS.contains(&(number / of_a_second)) {
        return Json::NotJson("a time beyond all calendars".to_owned());
    }
    Json::String(match unit {
        Unit::Milli => Field::TimestampMillis(number).to_string(),
        Unit::Micro => Field::TimestampMicros(number).to_string(),
        Unit::Nano => {
            let text = Field::TimestampMicros(number.div_euclid(1_000)).to_string();
            let nanos = format!("{:03} +", number.rem_euclid(1_000));
            text.replacen(" +", &nanos, 1)
        }
    })
}

fn time(number: i64, unit: Unit) -> Json {
    let text = match (unit, i32::try_from(number)) {
        _ if number < 0 => None,
        (Unit::Milli, Ok(number)) => Some(Field::TimeMillis(number).to_string()),
        (Unit::Milli, Err(_)) => None,
        (Unit::Micro, _) => Some(Field::TimeMicros(number).to_string()),
        (Unit::Nano, _) => {
            let micros = Field::TimeMicros(number / 1_000);
            Some(format!("{micros}{:03}", number % 1_000))
        }
    };
    text.map_or_else(
        || Json::NotJson("a time beyond all days".to_owned()),
        Json::String,
    )
}

fn uuid(bytes: &[u8]) -> String {
    use std::fmt::Write;

    let mut text = String::with_capacity(36);
    for (place, byte) in bytes.iter().enumerate() {
        if matches!(place, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        write!(text, "{byte:02x}").expect("a string takes everything");
    }
    text
}
