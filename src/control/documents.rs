//! Floor 5: reads the documents of one file: ServiceProfiles and Endpoints.

use crate::authz::parse as authz;
use crate::discover::endpoint::EndpointSet;
use crate::discover::parse as endpoints;
use crate::profile::import::cluster::ImportSettings;
use crate::profile::import::load;
use crate::profile::invalid::Fault;
use crate::profile::invalid::Invalid;
use crate::profile::invalid::Severity;
use crate::profile::name::ServiceName;
use crate::profile::object;
use crate::profile::object::Object;
use crate::profile::parse as profiles;
use crate::profile::service::ServiceProfile;
use std::sync::Arc;

/// What a file says.
#[derive(Debug, Clone, Default)]
pub struct Parsed {
    /// The profiles in it.
    pub profiles: Vec<Arc<ServiceProfile>>,
    /// Documents of other dialects in it, which are understood only together with those of other files.
    pub objects: Vec<Object>,
    /// The endpoints in it.
    pub endpoints: Vec<(ServiceName, EndpointSet)>,
    /// What is said about it although it is good.
    pub notes: Vec<Fault>,
}

/// The API groups whose documents are ours to read: one of an unknown kind is a mistake, and not somebody else's.
const GROUPS: [&str; 2] = ["enmesh.dev", "linkerd.io"];

/// Reads every document of the file called `name`.
///
/// A file is good or refused as a whole: half of what somebody wrote is not what they meant. Documents of the dialects
/// that are imported are kept as they are, if nothing in them is refused. Documents of other kinds, as manifests have
/// them beside ours, are ignored and said to be.
///
/// # Errors
///
/// All faults of all documents, if one of them is refused.
pub fn parse(name: &str, text: &str) -> Result<Parsed, Invalid> {
    let mut parsed = Parsed::default();
    let mut faults = Vec::new();
    let mut refused = false;
    for object in object::read(text, name) {
        if authz::is_authorization(&object) {
            let problem = "an Authorization is not read from here";
            let remedy = "give it to `MeshBuilder::authorize`, or keep it elsewhere to silence this";
            faults.push(Fault::new(Severity::Ignored, "kind", problem, remedy));
        } else if endpoints::is_endpoints(&object) {
            let document = endpoints::endpoints(object);
            refused |= document.endpoints.is_none();
            parsed.endpoints.extend(document.endpoints);
            faults.extend(document.faults);
        } else if load::is_read(&object) {
            parsed.objects.push(object);
        } else if is_foreign(&object) {
            let problem = format!("a {} of {} is nothing that is read here", object.kind, object.api_version);
            faults.push(Fault::new(Severity::Ignored, "kind", problem, "keep it elsewhere to silence this"));
        } else {
            let document = profiles::profile(object);
            refused |= document.profile.is_none();
            parsed.profiles.extend(document.profile.map(Arc::new));
            faults.extend(document.faults);
        }
    }
    if !parsed.objects.is_empty() {
        // What they come to depends on other files; what is wrong with them alone does not.
        let imported = load::load(parsed.objects.clone(), &ImportSettings::default());
        let wrong = imported.notes.into_iter().flat_map(|notes| notes.faults);
        let before = faults.len();
        faults.extend(wrong.filter(|fault| fault.severity == Severity::Rejected));
        refused |= faults.len() > before;
    }
    if refused {
        return Err(Invalid { faults });
    }
    parsed.notes = faults;
    Ok(parsed)
}

/// Whether a document is a good one of somebody else.
fn is_foreign(object: &Object) -> bool {
    let told = !object.kind.is_empty() && !object.api_version.is_empty();
    told && object.faults.is_empty() && !GROUPS.contains(&object.group())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROFILE: &str =
        "apiVersion: enmesh.dev/v1\nkind: ServiceProfile\nmetadata: {name: web.ns}\nspec: {}\n";
    const ENDPOINTS: &str = "apiVersion: enmesh.dev/v1\nkind: Endpoints\nmetadata: {name: web.ns}\n\
                             spec: {endpoints: [{address: '10.0.0.1:80'}]}\n";

    fn check(documents: &[&str], expected: Result<(usize, usize, &[&str]), &[&str]>) {
        let text = documents.join("---\n");
        let told = |faults: &[Fault]| faults.iter().map(ToString::to_string).collect::<Vec<_>>();
        match (parse("a.yaml", &text), expected) {
            (Ok(parsed), Ok((profiles, endpoints, notes))) => {
                assert_eq!((parsed.profiles.len(), parsed.endpoints.len()), (profiles, endpoints), "{text}");
                assert_eq!(told(&parsed.notes), notes, "{text}");
            }
            (Err(invalid), Err(parts)) => {
                let told = told(&invalid.faults);
                assert_eq!(told.len(), parts.len(), "{told:?}");
                assert!(told.iter().zip(parts).all(|(told, part)| told.contains(part)), "{told:?} {parts:?}");
            }
            (seen, _) => panic!("{text}: {seen:?}"),
        }
    }

    #[test]
    fn profiles_and_endpoints_may_share_a_file_and_the_foreign_is_told() {
        check(&[PROFILE, ENDPOINTS], Ok((1, 1, &[])));
        let note =
            "ignored: kind: a Secret of v1 is nothing that is read here; keep it elsewhere to silence this";
        check(&[ENDPOINTS, "apiVersion: v1\nkind: Secret\n"], Ok((0, 1, &[note])));
    }

    #[test]
    fn one_bad_document_refuses_the_file_with_all_faults() {
        let bad = PROFILE.replace("spec: {}", "spec: {routez: 1, timeouts: {request: x}}");
        check(&[ENDPOINTS, &bad], Err(&["routez", "request"]));
        check(
            &[ENDPOINTS, "apiVersion: linkerd.io/v1alpha2\nkind: ServiceProfil\n"],
            Err(&["ServiceProfil"]),
        );
        check(&["kind: Service\n"], Err(&["apiVersion"]));
        check(&["a: ["], Err(&[""]));
    }

    #[test]
    fn what_holds_nothing_is_left_to_the_caller() {
        check(&[""], Ok((0, 0, &[])));
        check(&["# only a comment\n"], Ok((0, 0, &[])));
    }
}
