//! The strict pass: does the document have the shape of [`super::raw::Config`]?
//!
//! facet-toml ignores unknown keys, reads `"8080"` and `70000` as numbers that fit, and points
//! at the wrong token. So the document, parsed strictly with its spans by the `toml` crate, is
//! compared with the reflection of the raw structs first. What passes here has only known keys,
//! every required key, and values of the right type; numbers fit an `i64`.

use std::fmt;
use std::ops::Range;

use facet::{Def, Facet, Field, Shape, Type, UserType};
use toml::Spanned;
use toml::de::{DeArray, DeTable, DeValue};

use super::raw::{PortOrAddress, Texts};
use crate::error::located::Problem;

/// Longest key for which a similar one is looked for.
const MAX_SIMILAR: usize = 32;

/// Everything in `document` that is not as `T` describes it.
pub(super) fn problems<T: Facet<'static>>(document: &DeTable<'_>) -> Vec<Problem> {
    let mut pass = Pass {
        root: fields(T::SHAPE),
        found: Vec::new(),
    };
    pass.table(document, None, pass.root, &Place::default());
    pass.found
}

struct Pass {
    root: &'static [Field],
    found: Vec<Problem>,
}

/// What a key may hold.
enum Kind {
    Text,
    Texts,
    TextOrTexts,
    Number,
    NumberOrText,
    Truth,
    Table(&'static [Field]),
    Tables(&'static [Field]),
}

/// A table of the file: `[auto_ports]`, `[[auto_ports.rule]]`; with no path the file itself.
#[derive(Default)]
struct Place {
    path: String,
    /// Whether it is one of many.
    item: bool,
}

impl Place {
    /// What the key `field` is in this table.
    fn of(&self, field: &'static Field) -> Self {
        let name = field.effective_name();
        let path = match self.path.as_str() {
            "" => name.to_owned(),
            path => format!("{path}.{name}"),
        };
        let item = matches!(kind(field), Kind::Tables(_));
        Self { path, item }
    }

    /// A key as it is written in this table: `range`, `[guest]`, `[[auto_ports.rule]]`.
    fn key(&self, field: &'static Field) -> String {
        match kind(field) {
            Kind::Table(_) | Kind::Tables(_) => self.of(field).header(),
            _ => field.effective_name().to_owned(),
        }
    }

    /// `[auto_ports]`
    fn header(&self) -> String {
        if self.item {
            format!("[[{}]]", self.path)
        } else {
            format!("[{}]", self.path)
        }
    }

    fn is_file(&self) -> bool {
        self.path.is_empty()
    }
}

/// ` in [auto_ports]`; nothing for the file itself.
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_file() {
            Ok(())
        } else {
            write!(f, " in {}", self.header())
        }
    }
}

impl Pass {
    /// `header` is where the table starts.
    fn table(
        &mut self,
        table: &DeTable<'_>,
        header: Option<Range<usize>>,
        fields: &'static [Field],
        place: &Place,
    ) {
        let mut meant = Vec::new();
        for (name, value) in table {
            match fields.iter().find(|f| f.effective_name() == name.get_ref()) {
                Some(field) => self.value(value, field, place),
                None => meant.extend(self.unknown(name, value.get_ref(), fields, place)),
            }
        }
        for field in fields {
            let name = field.effective_name();
            let present = table.iter().any(|(key, _)| key.get_ref() == name);
            // One that is misspelt was told of already.
            if !present && required(field) && !meant.contains(&name) {
                self.found.push(Problem::new(
                    header.clone().unwrap_or(0..0),
                    format!("has no `{name}`"),
                    format!("`{name}` is missing{place}"),
                    hint(field),
                ));
            }
        }
    }

    fn value(&mut self, value: &Spanned<DeValue<'_>>, field: &'static Field, place: &Place) {
        let span = value.span();
        match (kind(field), value.get_ref()) {
            (Kind::Text | Kind::TextOrTexts, DeValue::String(_))
            | (Kind::Truth, DeValue::Boolean(_)) => {}
            // facet-toml takes it for a number.
            (Kind::NumberOrText, DeValue::String(text)) if !is_port(text) => {}
            (kind @ (Kind::Texts | Kind::TextOrTexts), DeValue::Array(array)) => {
                let others = array.iter().filter(|item| !item.get_ref().is_str());
                for item in others {
                    self.wrong_type(item.span(), &kind, item.get_ref(), field, place);
                }
            }
            (Kind::Number | Kind::NumberOrText, DeValue::Integer(number)) => {
                if i64::from_str_radix(number.as_str(), number.radix()).is_err() {
                    self.found.push(Problem::new(
                        span,
                        "too large",
                        format!("`{}` is too large a number", field.effective_name()),
                        hint(field),
                    ));
                }
            }
            (Kind::Table(fields), DeValue::Table(table)) => {
                self.table(table, Some(span), fields, &place.of(field));
            }
            (Kind::Tables(fields), DeValue::Array(array)) => {
                self.tables(array, fields, field, place);
            }
            (kind, other) => self.wrong_type(span, &kind, other, field, place),
        }
    }

    fn tables(
        &mut self,
        array: &DeArray<'_>,
        fields: &'static [Field],
        field: &'static Field,
        place: &Place,
    ) {
        for item in array {
            match item.get_ref() {
                DeValue::Table(table) => {
                    self.table(table, Some(item.span()), fields, &place.of(field));
                }
                other => self.wrong_type(item.span(), &Kind::Tables(fields), other, field, place),
            }
        }
    }

    fn wrong_type(
        &mut self,
        span: Range<usize>,
        kind: &Kind,
        value: &DeValue<'_>,
        field: &'static Field,
        place: &Place,
    ) {
        let name = field.effective_name();
        let wanted = match kind {
            Kind::Text => "a text in quotes",
            Kind::Texts => "a list of texts in quotes",
            Kind::TextOrTexts => "a text in quotes, or a list of such texts",
            Kind::Number => "a number",
            Kind::NumberOrText => "a number, or an address with a port in quotes",
            Kind::Truth => "true or false",
            Kind::Table(_) => "one table",
            Kind::Tables(_) => "a list of tables",
        };
        let hint = match (kind, value) {
            (Kind::Number | Kind::NumberOrText, DeValue::String(text)) if is_port(text) => {
                format!("leave out the quotes: `{name} = {}`", text.trim())
            }
            (Kind::Tables(_), DeValue::Table(_)) => {
                format!("write two brackets around it: `{}`", place.key(field))
            }
            (Kind::Table(_), DeValue::Array(_)) => {
                format!("write one bracket around it: `{}`", place.key(field))
            }
            _ => hint(field),
        };
        self.found.push(Problem::new(
            span,
            format!("this is {}", type_name(value)),
            format!("`{name}` must be {wanted}"),
            hint,
        ));
    }

    /// The name of the key that was probably meant.
    fn unknown(
        &mut self,
        name: &Spanned<std::borrow::Cow<'_, str>>,
        value: &DeValue<'_>,
        fields: &'static [Field],
        place: &Place,
    ) -> Option<&'static str> {
        let is_table = match value {
            DeValue::Table(_) => true,
            DeValue::Array(items) => items.iter().any(|item| item.get_ref().is_table()),
            _ => false,
        };
        let what = if is_table && place.is_file() {
            "table"
        } else {
            "key"
        };
        let text = name.get_ref();
        let meant = similar(text, fields);
        let hint = if let Some(field) = meant {
            format!("did you mean `{}`?", place.key(field))
        } else if let Some((home, key)) = home_of(text, self.root, &Place::default()) {
            if is_table {
                format!("write `{key}`")
            } else {
                format!("`{text}` belongs {home}")
            }
        } else {
            let known: Vec<_> = fields
                .iter()
                .map(|f| format!("`{}`", place.key(f)))
                .collect();
            let place = if place.is_file() {
                " here".to_owned()
            } else {
                place.to_string()
            };
            format!("known{place} are {}", known.join(", "))
        };
        self.found.push(Problem::new(
            name.span(),
            "not known here",
            format!("unknown {what} `{text}`{place}"),
            hint,
        ));
        meant.map(Field::effective_name)
    }
}

/// Where a key that is unknown in its table would be known, from the table `place` on, and how
/// it is written there.
fn home_of(key: &str, fields: &'static [Field], place: &Place) -> Option<(String, String)> {
    if let Some(field) = fields.iter().find(|f| f.effective_name() == key) {
        let home = if place.is_file() {
            "at the top of the file, before the first `[table]`".to_owned()
        } else {
            place.to_string().trim().to_owned()
        };
        return Some((home, place.key(field)));
    }
    fields.iter().find_map(|field| match kind(field) {
        Kind::Table(inner) | Kind::Tables(inner) => home_of(key, inner, &place.of(field)),
        _ => None,
    })
}

/// The field's doc comment.
fn hint(field: &Field) -> String {
    field.doc.join(" ").trim().to_owned()
}

fn similar(text: &str, fields: &'static [Field]) -> Option<&'static Field> {
    if text.len() > MAX_SIMILAR {
        return None;
    }
    let text = text.to_ascii_lowercase().replace('-', "_");
    fields
        .iter()
        .map(|f| (strsim::jaro_winkler(&text, f.effective_name()), f))
        .filter(|(likeness, _)| *likeness >= 0.8)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, field)| field)
}

fn type_name(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a text",
        DeValue::Integer(_) => "a number",
        DeValue::Float(_) => "a number with a point",
        DeValue::Boolean(_) => "a truth value",
        DeValue::Datetime(_) => "a date or time",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

/// A port in quotes.
fn is_port(text: &str) -> bool {
    text.trim().parse::<u16>().is_ok()
}

fn required(field: &Field) -> bool {
    !field.has_default() && !matches!(field.shape.get().def, Def::Option(_))
}

fn kind(field: &'static Field) -> Kind {
    let shape = match field.shape.get() {
        Shape {
            def: Def::Option(option),
            ..
        } => option.t(),
        shape => shape,
    };
    match &shape.def {
        Def::List(list) if list.t().is_type::<String>() => Kind::Texts,
        Def::List(list) => Kind::Tables(fields(list.t())),
        _ if shape.is_type::<String>() => Kind::Text,
        _ if shape.is_type::<Texts>() => Kind::TextOrTexts,
        _ if shape.is_type::<PortOrAddress>() => Kind::NumberOrText,
        _ if shape.is_type::<i64>() => Kind::Number,
        _ if shape.is_type::<bool>() => Kind::Truth,
        _ => Kind::Table(fields(shape)),
    }
}

/// The fields of a struct; none of anything else (a test sees to it that there is nothing else).
fn fields(shape: &'static Shape) -> &'static [Field] {
    match &shape.ty {
        Type::User(UserType::Struct(of)) => of.fields,
        _ => &[],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::raw::Config;

    fn all(found: &mut Vec<&'static Field>, of: &'static [Field]) {
        for field in of {
            found.push(field);
            if let Kind::Table(of) | Kind::Tables(of) = kind(field) {
                assert!(!of.is_empty(), "{}: a type that is not known", field.name);
                all(found, of);
            }
        }
    }

    #[test]
    fn every_key_has_a_known_type_and_a_hint_with_an_example() {
        let mut found = Vec::new();
        all(&mut found, fields(Config::SHAPE));
        assert!(found.len() > 10);
        for field in found {
            let hint = hint(field);
            assert!(hint.starts_with('`') && hint.contains(" = "), "{hint}");
            assert!(!hint.ends_with('.') && !hint.contains("  "), "{hint}");
        }
    }

    #[test]
    fn a_typing_slip_finds_its_key() {
        for (typed, meant) in [
            ("autoports", "auto_ports"),
            ("auto-ports", "auto_ports"),
            ("Ports", "ports"),
            ("prots", "ports"),
            ("geust", "guest"),
        ] {
            let found = similar(typed, fields(Config::SHAPE)).map(|f| f.name);
            assert_eq!(found, Some(meant), "{typed}");
        }
        assert!(similar("colour", fields(Config::SHAPE)).is_none());
    }
}
