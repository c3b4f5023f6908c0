//! `/openapi.json`: the description of the API.

use axum::http::HeaderValue;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};

/// OpenAPI 3.1, written by hand; a test holds it against the routes.
pub(super) const DOCUMENT: &str =
    include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/openapi.json"));

pub(super) async fn show() -> Response {
    ([(CONTENT_TYPE, HeaderValue::from_static("application/json"))], DOCUMENT).into_response()
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use axum::body::Body;
    use axum::http::Request;
    use serde_json::Value;
    use tower::ServiceExt;

    use super::*;
    use crate::config::Config;
    use crate::{router, testing};

    fn document() -> Value {
        serde_json::from_str(DOCUMENT).unwrap()
    }

    /// Paths with their methods, in capitals.
    fn described() -> BTreeMap<String, BTreeSet<String>> {
        let document = document();
        let methods =
            |path: &Value| path.as_object().unwrap().keys().map(|m| m.to_uppercase()).collect();
        let paths = document["paths"].as_object().unwrap();
        paths.iter().map(|(path, methods_of)| (path.clone(), methods(methods_of))).collect()
    }

    #[tokio::test]
    async fn all_paths_and_methods_are_described_and_no_others() {
        let app = testing::app(Config::default());
        let router = router(&app);
        // The router lists its routes only when it is printed.
        let printed = format!("{router:?}");
        let quoted = printed.split('"').filter(|text| text.starts_with('/'));
        let routes = quoted.filter(|route| !route.contains("__private"));
        // A parameter that takes slashes is written like any other.
        let routes: BTreeSet<String> = routes.map(|route| route.replace("{*", "{")).collect();
        let described = described();
        assert_eq!(routes, described.keys().cloned().collect());

        for (path, methods) in described {
            let path = path.replace(['{', '}'], "");
            let request = Request::builder().method("TRACE").uri(&path).header("host", "localhost");
            let response =
                router.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
            assert_eq!(response.status(), 405, "{path}");
            let allowed = response.headers()["allow"].to_str().unwrap();
            let mut allowed: BTreeSet<String> = allowed.split(',').map(str::to_owned).collect();
            if allowed.contains("GET") {
                allowed.remove("HEAD");
            }
            assert_eq!(allowed, methods, "{path}");
        }
    }

    #[test]
    fn references_lead_somewhere_and_all_schemas_are_used() {
        let document = document();
        let references: BTreeSet<&str> = DOCUMENT
            .split("\"$ref\": \"#")
            .skip(1)
            .filter_map(|rest| rest.split('"').next())
            .collect();
        for reference in &references {
            assert!(document.pointer(reference).is_some(), "{reference}");
        }
        for name in document["components"]["schemas"].as_object().unwrap().keys() {
            assert!(references.contains(format!("/components/schemas/{name}").as_str()), "{name}");
        }
    }

    #[test]
    fn operations_are_told_apart_and_it_is_of_this_version() {
        let document = document();
        assert_eq!(document["info"]["version"], env!("CARGO_PKG_VERSION"));
        let mut ids = BTreeSet::new();
        for path in document["paths"].as_object().unwrap().values() {
            for operation in path.as_object().unwrap().values() {
                assert!(ids.insert(operation["operationId"].as_str().unwrap().to_owned()));
            }
        }
    }

    #[test]
    fn what_needs_no_key_is_described_so() {
        let document = document();
        for (path, methods) in document["paths"].as_object().unwrap() {
            let open = crate::guard::OPEN.iter().any(|open| open.replace("{*", "{") == *path);
            for operation in methods.as_object().unwrap().values() {
                assert_eq!(operation.get("security").is_some(), open, "{path}");
            }
        }
    }
}
