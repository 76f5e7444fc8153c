//! The parts of a domain's XML description that rum reads (libvirt.org/formatdomain.html).

use roxmltree::{Document, Node};

/// A domain, as `virsh dumpxml` describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description {
    /// The id of this run, new at each start; a domain that is shut off has none.
    pub run: Option<u32>,
    /// Its vsock device.
    pub vsock: Option<Vsock>,
}

/// A `<vsock>` device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vsock {
    /// Its context id. A `<cid auto='yes'/>` has one only while the domain runs.
    pub cid: Option<u32>,
}

impl Description {
    /// Parses `xml`.
    ///
    /// # Errors
    /// It is not XML, or does not describe a domain; in words.
    pub fn parse(xml: &str) -> Result<Self, String> {
        let document = Document::parse(xml).map_err(|error| error.to_string())?;
        let domain = document.root_element();
        if !domain.has_tag_name("domain") {
            return Err(format!("it describes a <{}>", domain.tag_name().name()));
        }
        let vsock = child(domain, "devices").and_then(|devices| child(devices, "vsock"));
        Ok(Self {
            run: number(domain, "id"),
            vsock: vsock.map(|vsock| Vsock {
                cid: child(vsock, "cid").and_then(|cid| number(cid, "address")),
            }),
        })
    }
}

fn child<'a, 'input>(of: Node<'a, 'input>, name: &str) -> Option<Node<'a, 'input>> {
    of.children().find(|node| node.has_tag_name(name))
}

fn number(node: Node<'_, '_>, attribute: &str) -> Option<u32> {
    node.attribute(attribute)?.parse().ok()
}
