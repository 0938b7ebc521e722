//! Features `data` and `parquet`: files as other programs write them, and what their columns hold.

use std::fs;
use std::path::{Path, PathBuf};

use burn::data::dataset::InMemDataset;
use burn_preference::data::{
    Encode, Example, Json, JsonLines, Object, OnError, PairFormat, ParquetFile, PromptFormat,
    RankedFormat, Scores, Text, Tokenized, Truncation, UnpairedFormat,
};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::support::cases;
use crate::support::damage::damaged;
use crate::support::fuzz::target;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data/parquet")
        .join(name)
}

fn parquet(name: &str) -> Vec<Object> {
    let rows = ParquetFile::new(golden(name), ()).raw().unwrap();
    let rows = rows.enumerate().map(|(i, row)| {
        let (line, row) = row.unwrap();
        assert_eq!(line, i + 1);
        row
    });
    rows.collect()
}

fn lines(path: &Path) -> Vec<Object> {
    let rows = JsonLines::new(path, ()).raw().unwrap();
    rows.map(|row| row.unwrap().1).collect()
}

/// Written by `scripts/parquet_goldens.py`; the lines are DuckDB's reading of the files.
#[test]
fn a_parquet_file_has_the_rows_that_its_json_lines_have() {
    for name in ["features", "use_json", "fastparquet", "types"] {
        let (rows, expected) = (
            parquet(&format!("{name}.parquet")),
            lines(&golden(&format!("{name}.jsonl"))),
        );
        assert_eq!(rows, expected, "{name}");
        // The order of keys is trained.
        let text = |rows: &[Object]| serde_json::to_string(rows).unwrap();
        assert_eq!(text(&rows), text(&expected), "{name}");
    }
    let expected = lines(&golden("zstd.jsonl"));
    assert_eq!(expected.len(), 3);
    for compression in ["zstd", "snappy", "gzip", "lz4", "brotli", "uncompressed"] {
        let rows = parquet(&format!("{compression}.parquet"));
        assert_eq!(rows, expected, "{compression}");
    }
    let number = |row: &Object, name: &str| row[name].to_string();
    let row = &parquet("types.parquet")[0];
    let digits = ["small", "tiny", "large", "whole"].map(|name| number(row, name));
    assert_eq!(digits, ["12.5", "-0.05", "1.2345678901234567e+19", "7"]);
    assert_eq!(number(row, "unsigned"), u64::MAX.to_string());
    assert_eq!(row["string"].as_str(), Some(r#"{"not": "decoded"}"#));
}

/// Seven hundred rows in row groups of 300 and pages of half a kilobyte.
#[test]
fn rows_of_many_pages_are_put_together() {
    let words = |i: usize| {
        let word = |j: usize| {
            let same = (0..j % 3).map(|_| Json::from(&*format!("w{j}")));
            Json::Array(same.collect())
        };
        match i % 5 {
            0 => Json::Null,
            count => Json::Array((0..count).map(word).collect()),
        }
    };
    for version in [1, 2] {
        let rows = parquet(&format!("pages_{version}.parquet"));
        assert_eq!(rows.len(), 700);
        for (i, row) in rows.iter().enumerate() {
            assert_eq!(row["text"], Json::from(&*format!("row {}", i % 7)));
            assert_eq!(row["number"].to_string(), i.to_string());
            assert_eq!(row["words"], words(i), "row {i}");
        }
    }
}

#[test]
fn a_column_that_nobody_reads_never_stops_a_file() {
    let file = golden("not_json.parquet");
    let loaded = ParquetFile::new(&file, PairFormat::default()).load(OnError::Stop);
    let example = loaded.unwrap().examples.remove(0);
    let columns = &example.columns;
    let kinds = ["score", "age", "image", "long_ago"].map(|name| columns[name].to_string());
    let expected = [
        "<NaN>",
        "<an interval of time>",
        "<bytes, which are no text>",
        "<a date -2147483645 days after 1970>",
    ];
    assert_eq!(kinds, expected);
    assert_eq!(columns["days"].to_string(), r#"{"2020-01-02":1}"#);
    let texts = ["date", "time", "timestamp", "nanoseconds"].map(|name| columns[name].as_str());
    let expected = [
        "2020-01-02",
        "03:04:05.000006",
        "2020-01-02 03:04:05.000006 +00:00",
        "2020-01-02 03:04:05.000000007 +00:00",
    ];
    assert_eq!(texts, expected.map(Some));
    // It is no JSON, and never becomes one without a word.
    let error = serde_json::to_string(&**columns).unwrap_err().to_string();
    assert!(
        error.starts_with("JSON does not have this value: NaN"),
        "{error}"
    );

    // The same columns where they are read.
    let read = |prompt: &str| {
        let file = ParquetFile::new(&file, PromptFormat::from(prompt));
        file.read()
            .unwrap()
            .next()
            .unwrap()
            .unwrap_err()
            .to_string()
    };
    for (column, found) in [
        ("image", "bytes, which are no text"),
        ("score", "NaN"),
        ("age", "an interval of time"),
    ] {
        let error = read(column);
        let expected = format!(
            "not_json.parquet:1: `{column}`: expected a string or a list of messages, found {found}"
        );
        assert!(error.ends_with(&expected), "{error}");
    }
}

#[test]
fn values_that_json_does_not_have_stand_in_json_lines_too() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.jsonl");
    let row = |scores: &str, more: &str| {
        let row = format!(
            r#"{{"prompt": "p", "responses": ["a NaN", "-Infinity"], "scores": {scores}{more}}}"#
        );
        fs::write(&path, row).unwrap();
        let mut rows = JsonLines::new(&path, RankedFormat::default())
            .read()
            .unwrap();
        rows.next().unwrap()
    };
    // `json.dumps` of Python.
    let more = r#", "kl": [NaN, {"x":-Infinity}], "cut": "\ud83d", "big": 1e999, "NaN": 1"#;
    let example = row("[1, 2]", more).unwrap();
    assert_eq!(example.label, Scores(vec![1.0, 2.0]));
    let texts: Vec<_> = example.completions().iter().map(Text::as_plain).collect();
    assert_eq!(texts, [Some("a NaN"), Some("-Infinity")]);
    let columns = ["kl", "cut", "big", "NaN"].map(|name| example.columns[name].to_string());
    let expected = [
        r#"[<NaN>,{"x":<-Infinity>}]"#,
        "<a string that is none (unexpected end of hex escape)>",
        "<1e999, which is beyond f64>",
        "1",
    ];
    assert_eq!(columns, expected);
    let error = row("[1, NaN]", "").unwrap_err().to_string();
    assert!(
        error.ends_with("rows.jsonl:1: `scores[1]`: expected a number, found NaN"),
        "{error}"
    );
    // What is no JSON for another reason is an error as before, at its place.
    for (more, expected) in [
        (r#", "a": NaN, "a": 2"#, "expected value at column 77"),
        (r#", "a": None"#, "expected value at column 77"),
        (r#", "a": nan"#, "expected ident at column 78"),
    ] {
        let error = row("[1, 2]", more).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    let plain: Json = serde_json::from_str(r#"{"$burn_preference::NotJson": "x"}"#).unwrap();
    assert!(plain.get("$burn_preference::NotJson").is_some());
}

#[test]
fn a_missing_column_is_named_beside_those_that_there_are() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.jsonl");
    fs::write(
        &path,
        r#"{"question": "q", "chosen": "a", "rejected": "b"}"#,
    )
    .unwrap();
    let error = |error: burn_preference::data::DataError| error.to_string();
    let unpaired = JsonLines::new(&path, UnpairedFormat::default());
    let unpaired = error(unpaired.load(OnError::Stop).unwrap_err());
    let expected = "`completion`: expected a string or a list of messages, found nothing beside \
                    `question`, `chosen`, `rejected`";
    assert!(unpaired.ends_with(expected), "{unpaired}");
}

/// Two frames that part in the middle of a row, and one between them that programs pass over.
#[test]
fn json_lines_by_zstandard() {
    // `zstd --check` of both halves.
    let frames: &[u8] = b"(\xb5/\xfd\x04X\xe9\x00\x00{\x22promp\
      t\x22:\x20\x22p\x22,\x20\x22chosen\
      \x22:\x20\x22a\x22d\xc5\xe3\x0bP*M\x18\x03\x00\
      \x00\x00xyz(\xb5/\xfd\x04X\xe5\x01\x00D\x03\
      ,\x20\x22rejected\x22:\x20\x22b\
      \x22}\x0a{\x22prompt\x22:\x20\x22q\
      \x22,\x20\x22chosen\x22:\x20\x22c\x22\
      d\x22}\x0a\x01\x000;\x05\x05\x07\xe3\x88E";
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.jsonl.zst");
    fs::write(&path, frames).unwrap();
    let rows = JsonLines::new(&path, PairFormat::default())
        .load(OnError::Stop)
        .unwrap()
        .examples;
    assert_eq!(rows.len(), 2);
    assert_eq!(rows[1].rejected(), &Text::Plain("d".into()));
    let error = JsonLines::new(&path, PairFormat::default())
        .open()
        .unwrap_err();
    assert!(error.to_string().contains("no random access"), "{error}");
    fs::write(&path, &frames[..frames.len() - 5]).unwrap();
    let cut = JsonLines::new(&path, PairFormat::default()).load(OnError::Skip);
    assert!(cut.unwrap_err().to_string().contains("rows.jsonl.zst: "));
}

#[test]
fn another_kind_of_file_says_what_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.json");
    for array in ["[\n  {\"prompt\": \"p\"}\n]", "[{\"prompt\": \"p\"}]"] {
        fs::write(&path, array).unwrap();
        let rows = JsonLines::new(&path, PairFormat::default());
        let error = rows.load(OnError::Skip).unwrap_err().to_string();
        assert!(error.contains("`jq -c '.[]' FILE > FILE.jsonl`"), "{error}");
    }
    let utf16: Vec<u8> = "\u{feff}{}"
        .encode_utf16()
        .flat_map(u16::to_le_bytes)
        .collect();
    for (content, says) in [
        (&b"prompt,chosen,rejected\n2+2=,4,5\n"[..], "duckdb -c"),
        (b"\xfd7zXZ\x00{", "duckdb -c"),
        (&utf16, "iconv -f UTF-16"),
    ] {
        fs::write(&path, content).unwrap();
        let rows = JsonLines::new(&path, PairFormat::default());
        let error = rows.load(OnError::Skip).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
    // A first row that is broken is one row.
    fs::write(&path, "{\n{\"chosen\": \"a\", \"rejected\": \"b\"}").unwrap();
    let loaded = JsonLines::new(&path, PairFormat::default()).load(OnError::Skip);
    assert_eq!(loaded.unwrap().examples.len(), 1);
    let file = golden("zstd.parquet");
    let raw = JsonLines::new(&file, ()).raw().err().unwrap().to_string();
    let opened = JsonLines::new(&file, PairFormat::default()).open();
    for error in [raw, opened.unwrap_err().to_string()] {
        assert!(error.ends_with("`ParquetFile` reads it"), "{error}");
    }
}

/// A damaged page: the column whose page it is cannot be read, and the others can.
#[test]
fn a_damaged_column_is_an_error_where_it_is_read() {
    let mut bytes = fs::read(golden("uncompressed.parquet")).unwrap();
    let text = b"Not at all.";
    let place = bytes.windows(text.len()).position(|some| some == text);
    // No UTF-8.
    bytes[place.unwrap()] = 0xff;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.parquet");
    fs::write(&path, bytes).unwrap();
    let loaded = ParquetFile::new(&path, PairFormat::default()).load(OnError::Skip);
    let skipped = loaded.unwrap().skipped;
    assert!(
        skipped[0].to_string().ends_with(
            "rows.parquet:1: `rejected[0].content`: expected a string or a list of typed parts, \
             found a string that is not UTF-8"
        ),
        "{}",
        skipped[0]
    );
    let format = PairFormat {
        rejected: "chosen".into(),
        chosen: "prompt".into(),
        ..PairFormat::default()
    };
    let rows = ParquetFile::new(&path, format).raw().unwrap();
    assert_eq!(rows.count(), 3);
}

#[test]
fn pairs_are_identical_by_what_counts() {
    let pair = |chosen: &str, rejected: &str| {
        let plain = |text: &str| Text::Plain(text.to_owned());
        Example::pair(plain("p"), plain(chosen), plain(rejected))
    };
    // Capital letters do not count.
    let tokenizer = |text: Encode<'_>| -> Result<(Vec<u32>, Vec<bool>), &str> {
        let text = text.content.as_plain().ok_or("a conversation")?;
        let counted = text.bytes().map(|byte| byte.is_ascii_lowercase());
        Ok((text.bytes().map(u32::from).collect(), counted.collect()))
    };
    let rows = vec![
        pair("aB", "aC"),
        pair("a", "a"),
        pair("ab", "aB"),
        pair("a", "b"),
    ];
    let truncation = Truncation::Drop { max_length: 9 };
    let tokens = Tokenized::new(InMemDataset::new(rows), tokenizer, truncation).unwrap();
    assert_eq!(tokens.report().identical_pairs, 2);
}

#[test]
fn a_prompt_alone_is_asked_for_with_its_tools() {
    let row = r#"{
        "prompt": [{"role": "user", "content": "2+2?"}],
        "tools": "[{\"name\": \"f\"}]", "chat_template_kwargs": {"think": false}
    }"#;
    let row = serde_json::from_str(row).unwrap();
    let example = burn_preference::data::Format::parse(&PromptFormat::default(), row).unwrap();
    let tokenizer = |text: Encode<'_>| -> Result<Vec<u32>, &str> {
        assert_eq!(text.tools.unwrap().to_string(), r#"[{"name":"f"}]"#);
        assert_eq!(text.chat_template_kwargs["think"].as_bool(), Some(false));
        assert!(text.add_generation_prompt);
        Ok(vec![1, 2])
    };
    assert_eq!(example.prompt_ids(tokenizer).unwrap(), [1, 2]);
    let refused = |_: Encode<'_>| Err::<Vec<u32>, _>("no");
    assert_eq!(example.prompt_ids(refused).unwrap_err().to_string(), "no");
}

/// The codec of one column is another one in the file's footer.
#[test]
fn a_compression_that_is_not_known_is_named() {
    let mut bytes = fs::read(golden("snappy.parquet")).unwrap();
    // Name and codec, as Thrift writes them: Snappy is 1, LZO is 3.
    let (snappy, lzo) = (b"margin\x15\x02", b"margin\x15\x06");
    // The last one is the footer's.
    let mut places = bytes.windows(snappy.len());
    let place = places.rposition(|some| some == snappy).unwrap();
    bytes[place..place + lzo.len()].copy_from_slice(lzo);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.parquet");
    fs::write(&path, bytes).unwrap();
    let rows = |prompt: &str| ParquetFile::new(&path, PromptFormat::from(prompt)).read();
    let first = |prompt: &str| rows(prompt).unwrap().next().unwrap();
    assert!(first("chosen").is_ok());
    let error = first("margin").unwrap_err().to_string();
    for says in [
        "rows.parquet:1: `margin`: expected",
        "compressed by LZO",
        "duckdb -c",
    ] {
        assert!(error.contains(says), "{error}");
    }
}

/// Files on which parquet 60.1.0 panics: a page of a dictionary that there is none of, a page that
/// is shorter than its values, a number of too many bytes. File, column and row group are named, and
/// the rows keep their number.
#[test]
fn a_panic_of_the_reader_is_an_error() {
    for (name, column, rows, lost) in [
        ("no_dictionary", "chosen", 1, 1),
        ("short_page", "chosen", 2, 2),
        // The second row group is whole.
        ("long_varint", "words", 700, 300),
    ] {
        let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/parquet");
        let file = kept.join(format!("{name}.parquet"));
        let found = ParquetFile::new(&file, ()).raw().unwrap();
        let found: Vec<_> = found.map(Result::unwrap).collect();
        assert_eq!(found.len(), rows, "{name}");
        let is_lost = |row: &Object| match row.get(column) {
            Some(Json::NotJson(text)) => {
                assert!(text.contains("cannot be read in row group 1 ("), "{text}");
                true
            }
            _ => false,
        };
        let (in_group, after) = found.split_at(lost);
        assert!(in_group.iter().all(|(_, row)| is_lost(row)), "{name}");
        assert!(!after.iter().any(|(_, row)| is_lost(row)), "{name}");
        let mut prompts = ParquetFile::new(&file, PromptFormat::from(column))
            .read()
            .unwrap();
        let error = prompts.next().unwrap().unwrap_err().to_string();
        let says = format!("{name}.parquet:1: `{column}`: expected");
        assert!(error.contains(&says), "{error}");
    }
}

/// Whatever is damaged is an error where it is read, and no panic.
#[test]
fn damaged_files_are_read_or_refused() {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.parquet");
    let (mut read, mut refused, mut unreadable, mut panics) = (0, 0, 0, 0);
    let times = cases(25).cases;
    let seeds = fs::read_dir(golden("")).unwrap();
    let mut seeds: Vec<_> = seeds.map(|seed| seed.unwrap().path()).collect();
    seeds.retain(|seed| seed.extension().is_some_and(|end| end == "parquet"));
    seeds.sort();
    for seed in seeds {
        let bytes = fs::read(&seed).unwrap();
        for _ in 0..times {
            let damaged = damaged(&bytes, &mut rng);
            target("parquet")(&damaged);
            fs::write(&path, damaged).unwrap();
            match ParquetFile::new(&path, ()).raw() {
                Ok(rows) => {
                    let rows: Vec<_> = rows.take(1000).flatten().collect();
                    read += rows.len();
                    for (_, value) in rows.iter().flat_map(|(_, row)| row.iter()) {
                        if let Json::NotJson(text) = value {
                            unreadable += usize::from(text.contains("in row group"));
                            panics += usize::from(text.contains("panicked"));
                        }
                    }
                }
                Err(error) => {
                    refused += 1;
                    panics += usize::from(error.to_string().contains("panicked"));
                }
            }
        }
    }
    println!(
        "{read} rows, {unreadable} values of columns that cannot be read; {refused} files refused; \
         {panics} errors of panics"
    );
    assert!(
        read > 100 && refused > 10 && unreadable > 10,
        "{read} {refused} {unreadable}"
    );
}
