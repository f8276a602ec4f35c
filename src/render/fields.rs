//! Looks into an object: a value by name or pointer, or all fields.
//!
//! An object's *fields* are what its store gives as such, or the entries of the JSON object that its bytes are. A `null` is no
//! value: such a field is not there. A message names the object and what was looked for, never what was found.

use std::{borrow::Cow, cell::OnceCell, collections::BTreeMap, sync::Arc};

use crate::{
    error::{Error, Result, codes},
    path::Mode,
    render::{
        json::{Json, unescape},
        quote,
    },
    secret::{Content, Object, SecretBytes},
    spec::{ObjectRef, Select, read::shown},
};

/// An object, read as JSON at most once.
pub(super) struct Look<'a> {
    pub name: &'a ObjectRef,
    pub object: &'a Object,
    json: OnceCell<Option<Json>>,
}

/// One value of an object.
pub(super) struct Found {
    pub bytes: Arc<SecretBytes>,
    /// The mode that the store asks for.
    pub mode: Option<Mode>,
}

/// One field, for a format.
pub(super) enum Entry<'l> {
    Json(&'l Json),
    Text(&'l str),
}

impl Entry<'_> {
    pub fn write_json(&self, out: &mut String) {
        match self {
            Entry::Json(json) => json.write(out),
            Entry::Text(text) => quote::json(text, out),
        }
    }

    /// As text; `None` for `null`.
    pub fn text(&self) -> Option<Cow<'_, str>> {
        match self {
            Entry::Text(text) => Some(Cow::Borrowed(text)),
            Entry::Json(Json::Null) => None,
            Entry::Json(Json::Text(text)) => Some(Cow::Borrowed(text)),
            Entry::Json(other) => {
                let mut out = String::new();
                other.write(&mut out);
                Some(Cow::Owned(out))
            }
        }
    }
}

impl<'a> Look<'a> {
    pub fn new(name: &'a ObjectRef, object: &'a Object) -> Self {
        Self {
            name,
            object,
            json: OnceCell::new(),
        }
    }

    /// Bytes of all that is in it.
    pub fn len(&self) -> usize {
        match &self.object.content {
            Content::Bytes(bytes) => bytes.len(),
            Content::Fields(fields) => fields.values().map(|field| field.value.len()).sum(),
        }
    }

    /// The bytes as JSON, if they are.
    pub fn json(&self) -> Option<&Json> {
        let read = || match &self.object.content {
            Content::Bytes(bytes) => std::str::from_utf8(bytes.expose())
                .ok()
                .and_then(Json::parse),
            Content::Fields(_) => None,
        };
        self.json.get_or_init(read).as_ref()
    }

    /// One value. `Ok(None)`: the object has none of this name.
    pub fn select(&self, select: &Select) -> Result<Option<Found>> {
        let of = |bytes: Vec<u8>| Found {
            bytes: Arc::new(SecretBytes::new(bytes)),
            mode: None,
        };
        match (&self.object.content, select) {
            (Content::Bytes(bytes), Select::Whole) => Ok(Some(Found {
                bytes: Arc::clone(bytes),
                mode: None,
            })),
            (Content::Fields(_), Select::Whole) => {
                let mut out = String::new();
                self.write_json(&mut out)?;
                Ok(Some(of(out.into_bytes())))
            }
            (Content::Fields(fields), Select::Field(name)) => {
                Ok(fields.get(name).map(|field| Found {
                    bytes: Arc::clone(&field.value),
                    mode: field.mode,
                }))
            }
            (Content::Bytes(_), Select::Field(name)) => {
                let Some(Json::Map(entries)) = self.json() else {
                    return Err(self.not_fields());
                };
                Ok(entries.get(&**name).and_then(Json::bytes).map(of))
            }
            (Content::Bytes(_), Select::Pointer(pointer)) => {
                let json = self.json().ok_or_else(|| self.not_fields())?;
                Ok(json.pointer(pointer).and_then(Json::bytes).map(of))
            }
            (Content::Fields(fields), Select::Pointer(pointer)) => self
                .inside_field(fields, pointer)
                .map(|bytes| bytes.map(of)),
        }
    }

    /// A pointer's first token names a field; the rest leads into the JSON that the field holds.
    fn inside_field(
        &self,
        fields: &BTreeMap<Box<str>, crate::secret::Field>,
        pointer: &str,
    ) -> Result<Option<Vec<u8>>> {
        let rest = pointer.strip_prefix('/').unwrap_or(pointer);
        let (first, rest) = match rest.find('/') {
            Some(at) => rest.split_at(at),
            None => (rest, ""),
        };
        let Some(field) = fields.get(&*unescape(first)) else {
            return Ok(None);
        };
        if rest.is_empty() {
            return Ok(Some(field.value.expose().to_vec()));
        }
        let text = std::str::from_utf8(field.value.expose()).ok();
        let json = text
            .and_then(Json::parse)
            .ok_or_else(|| self.not_fields())?;
        Ok(json.pointer(rest).and_then(Json::bytes))
    }

    /// All fields, by name.
    pub fn all(&self) -> Result<Vec<(String, Found)>> {
        match &self.object.content {
            Content::Fields(fields) => Ok(fields
                .iter()
                .map(|(name, field)| {
                    let found = Found {
                        bytes: Arc::clone(&field.value),
                        mode: field.mode,
                    };
                    (name.to_string(), found)
                })
                .collect()),
            Content::Bytes(_) => {
                let Some(Json::Map(entries)) = self.json() else {
                    return Err(self.not_fields());
                };
                let found = entries.iter().filter_map(|(name, value)| {
                    let bytes = Arc::new(SecretBytes::new(value.bytes()?));
                    Some((name.clone(), Found { bytes, mode: None }))
                });
                Ok(found.collect())
            }
        }
    }

    /// All fields, as text or JSON. What a store gives as fields must be UTF-8.
    pub fn entries(&self) -> Result<Vec<(&str, Entry<'_>)>> {
        match &self.object.content {
            Content::Bytes(_) => {
                let Some(Json::Map(entries)) = self.json() else {
                    return Err(self.not_fields());
                };
                let entries = entries.iter();
                Ok(entries
                    .map(|(name, value)| (&**name, Entry::Json(value)))
                    .collect())
            }
            Content::Fields(fields) => fields
                .iter()
                .map(|(name, field)| {
                    let text = std::str::from_utf8(field.value.expose()).map_err(|_| {
                        Error::new(&codes::RENDER_NOT_TEXT).detail(format!(
                            "the field `{}` of `{}` is not UTF-8 text",
                            shown(name),
                            shown(&self.name.to_string())
                        ))
                    })?;
                    Ok((&**name, Entry::Text(text)))
                })
                .collect(),
        }
    }

    /// All fields as one canonical JSON object.
    pub fn write_json(&self, out: &mut String) -> Result<()> {
        out.push('{');
        for (index, (name, value)) in self.entries()?.into_iter().enumerate() {
            if index > 0 {
                out.push(',');
            }
            quote::json(name, out);
            out.push(':');
            value.write_json(out);
        }
        out.push('}');
        Ok(())
    }

    fn not_fields(&self) -> Error {
        Error::new(&codes::RENDER_NOT_FIELDS).detail(format!(
            "`{}` is not a JSON object (of at most 32 levels), so it has no fields",
            shown(&self.name.to_string())
        ))
    }
}
