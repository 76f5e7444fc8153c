//! The strict pass: does the document have the shape of [`super::raw::Config`]?
//!
//! facet-toml ignores unknown keys, reads `"8080"` and `70000` as numbers that fit, and points
//! at the wrong token. So the document, parsed strictly with its spans by the `toml` crate, is
//! compared with the reflection of the raw structs first. What passes here has only known keys,
//! every required key, and values of the right type; numbers fit an `i64`.

use std::ops::Range;

use facet::{Def, Facet, Field, Shape, Type, UserType};
use toml::Spanned;
use toml::de::{DeArray, DeTable, DeValue};

use super::error::Problem;

/// Longest key for which a similar one is looked for.
const MAX_SIMILAR: usize = 32;

/// Everything in `document` that is not as `T` describes it.
pub(super) fn problems<T: Facet<'static>>(document: &DeTable<'_>) -> Vec<Problem> {
    let mut pass = Pass {
        root: fields(T::SHAPE),
        found: Vec::new(),
    };
    pass.table(document, None, pass.root, None);
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
    Number,
    Table(&'static [Field]),
    Tables(&'static [Field]),
}

impl Pass {
    /// `header` is where the table starts; `key` the one that holds it, `None` for the file.
    fn table(
        &mut self,
        table: &DeTable<'_>,
        header: Option<Range<usize>>,
        fields: &'static [Field],
        key: Option<&'static Field>,
    ) {
        let mut meant = Vec::new();
        for (name, value) in table {
            match fields.iter().find(|f| f.effective_name() == name.get_ref()) {
                Some(field) => self.value(value, field),
                None => meant.extend(self.unknown(name, value.get_ref(), fields, key)),
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
                    format!("`{name}` is missing{}", place(key)),
                    hint(field),
                ));
            }
        }
    }

    fn value(&mut self, value: &Spanned<DeValue<'_>>, field: &'static Field) {
        let span = value.span();
        match (kind(field), value.get_ref()) {
            (Kind::Text, DeValue::String(_)) => {}
            (Kind::Texts, DeValue::Array(array)) => {
                let others = array.iter().filter(|item| !item.get_ref().is_str());
                for item in others {
                    self.wrong_type(item.span(), &Kind::Texts, item.get_ref(), field);
                }
            }
            (Kind::Number, DeValue::Integer(number)) => {
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
                self.table(table, Some(span), fields, Some(field));
            }
            (Kind::Tables(fields), DeValue::Array(array)) => self.tables(array, fields, field),
            (kind, other) => self.wrong_type(span, &kind, other, field),
        }
    }

    fn tables(&mut self, array: &DeArray<'_>, fields: &'static [Field], field: &'static Field) {
        for item in array {
            match item.get_ref() {
                DeValue::Table(table) => {
                    self.table(table, Some(item.span()), fields, Some(field));
                }
                other => self.wrong_type(item.span(), &Kind::Tables(fields), other, field),
            }
        }
    }

    fn wrong_type(
        &mut self,
        span: Range<usize>,
        kind: &Kind,
        value: &DeValue<'_>,
        field: &'static Field,
    ) {
        let name = field.effective_name();
        let wanted = match kind {
            Kind::Text => "a text in quotes",
            Kind::Texts => "a list of texts in quotes",
            Kind::Number => "a number",
            Kind::Table(_) => "one table",
            Kind::Tables(_) => "a list of tables",
        };
        let hint = match (kind, value) {
            (Kind::Number, DeValue::String(text)) if text.trim().parse::<u16>().is_ok() => {
                format!("leave out the quotes: `{name} = {}`", text.trim())
            }
            (Kind::Tables(_), DeValue::Table(_)) => {
                format!("write two brackets around it: `[[{name}]]`")
            }
            (Kind::Table(_), DeValue::Array(_)) => {
                format!("write one bracket around it: `[{name}]`")
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
        key: Option<&'static Field>,
    ) -> Option<&'static str> {
        let is_table = match value {
            DeValue::Table(_) => true,
            DeValue::Array(items) => items.iter().any(|item| item.get_ref().is_table()),
            _ => false,
        };
        let what = if is_table && key.is_none() {
            "table"
        } else {
            "key"
        };
        let text = name.get_ref();
        let meant = similar(text, fields);
        let hint = if let Some(field) = meant {
            format!("did you mean `{}`?", shape_name(field))
        } else if let Some(home) = self.home_of(text) {
            format!("`{text}` belongs {home}")
        } else {
            let known: Vec<_> = fields
                .iter()
                .map(|f| format!("`{}`", shape_name(f)))
                .collect();
            let place = key.map_or(" here".to_owned(), |key| place(Some(key)));
            format!("known{place} are {}", known.join(", "))
        };
        self.found.push(Problem::new(
            name.span(),
            "not known here",
            format!("unknown {what} `{text}`{}", place(key)),
            hint,
        ));
        meant.map(Field::effective_name)
    }

    /// Where a key that is unknown in its table would be known.
    fn home_of(&self, key: &str) -> Option<String> {
        let has = |fields: &[Field]| fields.iter().any(|f| f.effective_name() == key);
        if has(self.root) {
            return Some("at the top of the file, before the first `[table]`".into());
        }
        self.root.iter().find_map(|field| match kind(field) {
            Kind::Table(fields) | Kind::Tables(fields) if has(fields) => {
                Some(place(Some(field)).trim().to_owned())
            }
            _ => None,
        })
    }
}

/// ` in [auto_ports]`; nothing for the top of the file.
fn place(key: Option<&'static Field>) -> String {
    key.map_or_else(String::new, |field| format!(" in {}", shape_name(field)))
}

/// A key as it is written: `range`, `[guest]`, `[[ports]]`.
fn shape_name(field: &'static Field) -> String {
    let name = field.effective_name();
    match kind(field) {
        Kind::Text | Kind::Texts | Kind::Number => name.to_owned(),
        Kind::Table(_) => format!("[{name}]"),
        Kind::Tables(_) => format!("[[{name}]]"),
    }
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
        _ if shape.is_type::<i64>() => Kind::Number,
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
