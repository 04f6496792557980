//! Requests that mean ill. Each gets a 4xx, never a 5xx, and the server goes on.

use crate::rig::{Answer, DRIVERS, Driver, Format, Server};
use std::io::Write;

const NETWORKS: &str = "/v1.1/tenants/red/networks";

#[test]
fn ids_and_tenants_of_any_shape_are_looked_up_and_not_found() {
    for driver in DRIVERS {
        let server = Server::start(driver);
        for text in [
            "%2e%2e",
            "..%2f..%2fetc%2fpasswd",
            "'%20OR%20'1'='1",
            "%22",
            "%00",
            "%0d%0aX:%20y",
            "%c3%a9",
            "a%25b",
            "*",
            "~",
            "$(id)",
            "%f0%9f%98%80",
            &"x".repeat(300),
            &"x".repeat(8000),
            "-1",
            "%7b%7d",
            ";drop",
            "a%09b",
            "%e2%80%ae",
        ] {
            for path in [format!("{NETWORKS}/{text}"), format!("{NETWORKS}/{text}/ports/{text}/attachment")] {
                let answer = server.ask("GET", &path, None);
                assert_eq!(answer.status, 404, "{driver:?} {path}: {answer:?}");
                answer.json();
            }
            let answer = server.ask("GET", &format!("/v1.1/tenants/{text}/networks"), None);
            assert!(matches!(answer.status, 200 | 400 | 404), "{text}: {answer:?}");
        }
        assert_eq!(server.ask("GET", "/v1.1/tenants/%00/networks", None).status, 400);
        assert_eq!(server.ask("GET", &format!("/v1.1/tenants/{}/networks", "t".repeat(1024)), None).status, 200);
        assert_eq!(server.ask("GET", &format!("/v1.1/tenants/{}/networks", "t".repeat(1025)), None).status, 400);
        assert_eq!(server.ask("GET", "/v1.1/tenants/%ff/networks", None).status, 400);
        assert_eq!(server.ask("GET", "/%ff", None).status, 400);
        assert_eq!(server.ask("GET", &format!("{NETWORKS}?name=%ff&attachment=%00&%ff=%zz&&=&;"), None).status, 200);
    }
}

#[test]
fn bodies_that_are_no_request_get_400_and_change_nothing() {
    for driver in DRIVERS {
        let server = Server::start(driver);
        let network = server.make(NETWORKS, r#"{"network": {"name": "n"}}"#);
        let ports = format!("{NETWORKS}/{network}/ports");
        let port = server.make(&ports, r#"{"port": {"state": "ACTIVE"}}"#);
        let targets = [
            ("POST", NETWORKS.to_owned(), "network", "name"),
            ("PUT", format!("{NETWORKS}/{network}"), "network", "name"),
            ("POST", ports.clone(), "port", "state"),
            ("PUT", format!("{ports}/{port}"), "port", "state"),
            ("PUT", format!("{ports}/{port}/attachment"), "attachment", "id"),
        ];
        let long = format!("\"{}\"", "x".repeat(1025));
        let deep = format!("{}1{}", "[".repeat(20_000), "]".repeat(20_000));
        for (method, path, resource, attribute) in &targets {
            let values =
                ["1", "-1.5e300", "true", "false", "[]", "[\"a\"]", "{}", r#""\u0000""#, r#""a\u0000b""#, &long, &deep];
            let wrong_values = values.map(|value| format!(r#"{{"{resource}": {{"{attribute}": {value}}}}}"#));
            let wrong_resources =
                ["null", "1", "true", "\"x\"", "[]", "[{}]"].map(|value| format!(r#"{{"{resource}": {value}}}"#));
            let wrong_bodies = [
                "1",
                "[]",
                "\"x\"",
                "{}",
                "{",
                "}",
                " ",
                "\0",
                "%%%",
                "{\"a\": }",
                "{'a': 1}",
                "NaN",
                "\u{feff}{}",
                r#"{"network": {"name": "\ud800"}}"#,
                "<network name='n'/>",
                "{\"network\": {\"name\": \"a\"",
            ]
            .map(str::to_owned);
            for body in wrong_values.iter().chain(&wrong_resources).chain(&wrong_bodies) {
                let answer = server.ask(method, path, Some(body));
                let shown: String = body.chars().take(60).collect();
                assert_eq!(answer.status, 400, "{driver:?} {method} {path} {shown}: {answer:?}");
                answer.json();
            }
        }
        assert!(server.raw(b"POST /v1.1/tenants/red/networks HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 3\r\n\r\n\"\xff\"").starts_with("HTTP/1.1 400 "));
        let state = server.ask("GET", &format!("{NETWORKS}/{network}/detail"), None).json();
        assert_eq!(state["network"]["name"], "n");
        assert_eq!(state["network"]["ports"].as_array().unwrap().len(), 1);
        assert_eq!(state["network"]["ports"][0]["state"], "ACTIVE");
        assert!(state["network"]["ports"][0].get("attachment").is_none());
    }
}

#[test]
fn a_body_of_more_values_than_anybody_sends_is_malformed() {
    let server = Server::start(Driver::Fake);
    let create = |count: usize| {
        let ignored = "{\"\":[]},".repeat(count);
        server.ask("POST", NETWORKS, Some(&format!(r#"{{"network": {{"name": "n", "ignored": [{ignored}0]}}}}"#)))
    };
    assert_eq!(create(500).status, 202);
    let refused = create(5_000);
    assert_eq!(refused.status, 400, "{refused:?}");
    assert_eq!(refused.json()["Error"]["message"], "Malformed request body");
}

#[test]
fn an_attachment_id_is_opaque_text_of_up_to_1024_bytes() {
    for driver in DRIVERS {
        let server = Server::start(driver);
        let network = server.make(NETWORKS, r#"{"network": {"name": "n"}}"#);
        let ports = format!("{NETWORKS}/{network}/ports");
        let port = server.make(&ports, r#"{"port": {"state": "ACTIVE"}}"#);
        let attachment = format!("{ports}/{port}/attachment");
        for id in [
            "../../etc/passwd",
            "'; DROP TABLE ports; --",
            "\"",
            "\\",
            "\u{1}\u{7f}",
            "é\u{202e}x",
            " ",
            &"x".repeat(300),
            &"é".repeat(512),
        ] {
            let body = serde_json::json!({"attachment": {"id": id}});
            assert_eq!(server.ask("PUT", &attachment, Some(&body.to_string())).status, 204, "{id:?}");
            assert_eq!(server.ask("GET", &attachment, None).json(), body);
            assert_eq!(server.ask("DELETE", &attachment, None).status, 204);
        }
    }
}

#[test]
fn what_is_no_http_is_refused_and_others_are_served() {
    let server = Server::start(Driver::Fake);
    let bad: &[&[u8]] = &[
        b"\r\n\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"GET / HTTP/1.1\r\nHost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999999999999999\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: nonsense\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET  /  HTTP/1.1\r\n\r\n",
        b"GET /\0 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ];
    for bytes in bad {
        let mut stream = server.connect();
        let _ = stream.write_all(bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let text = crate::rig::read_to_end(&mut stream);
        assert!(text.is_empty() || text.starts_with("HTTP/1.1 4"), "{bytes:?}: {text}");
    }
    for (line, status) in [
        ("OPTIONS * HTTP/1.1", 404),
        ("CONNECT localhost:1 HTTP/1.1", 404),
        ("GET http://localhost/ HTTP/1.1", 200),
        ("GET http://evil.example/ HTTP/1.1", 403),
        ("FOO /v1.1/tenants/t/networks HTTP/1.1", 404),
    ] {
        let answer = server.raw(format!("{line}\r\nHost: localhost\r\nConnection: close\r\n\r\n").as_bytes());
        assert_eq!(Answer::parse(&answer).status, status, "{line}");
    }
    assert_eq!(server.ask("GET", NETWORKS, None).status, 200);
}

#[test]
fn what_the_border_refuses_is_told_in_the_format_asked_for() {
    let server = Server::start(Driver::Fake);
    let large = "x".repeat(70_000);
    let accept = "Accept: application/xml";
    for (method, path, headers, body, status) in [
        ("GET", "/v1.1/tenants/%ff/networks.xml", &[][..], None, 400),
        ("GET", "/v1.1/tenants/%ff/networks", &[accept], None, 400),
        ("POST", "/v1.0/tenants/t/networks", &["Content-Type: application/xml"], Some(large.as_str()), 413),
        ("GET", "/v1.1/tenants/t/networks.xml", &["Host: evil.example"], None, 403),
    ] {
        let answer = server.ask_with(method, path, headers, body);
        assert_eq!((answer.status, answer.header("content-type")), (status, Some("application/xml")), "{path}");
        let (root, value) = api::xml::read(answer.body.as_bytes()).expect("it is XML");
        assert_eq!((root.as_str(), value["code"].as_str()), ("Error", Some(status.to_string().as_str())), "{answer:?}");
        assert!(value["message"].as_str().is_some_and(|message| !message.is_empty()), "{answer:?}");
    }
    let answer = server.ask("GET", "/v1.1/tenants/%ff/networks", None);
    assert_eq!(answer.json(), serde_json::json!({"Error": {"message": "The path is not UTF-8.", "code": 400}}));
}

#[test]
fn xml_that_means_ill_gets_the_400_of_its_version_in_xml_and_costs_nothing() {
    let bomb = {
        let mut dtd = "<!DOCTYPE n [<!ENTITY e0 \"lol\">".to_owned();
        for at in 1..30 {
            dtd += &format!("<!ENTITY e{at} \"{}\">", format!("&e{};", at - 1).repeat(10));
        }
        format!("{dtd}]><network><name>&e29;</name></network>")
    };
    let prefixes: String = (0..60).map(|at| format!(" xmlns:p{at}='u'")).collect();
    // As many lookups of prefixes as fit: declarations on each level, and then names that use the first of them.
    let mut lookups = format!("<network{prefixes}>").repeat(15);
    while lookups.len() < 60_000 {
        lookups += "<p0:a p0:b='' p0:c='' p0:d=''/>";
    }
    let lookups = lookups + &"</network>".repeat(15);
    let long = "x".repeat(60_000);
    let bodies = [
        bomb,
        "<!DOCTYPE n SYSTEM 'file:///etc/passwd'><network name='n'/>".to_owned(),
        "<network><name>".repeat(2000),
        lookups,
        format!("<network name='{long}'/>"),
        format!("<network {long}='n'/>"),
        format!("<{long}/>"),
        "<network name='a' name='b'/>".to_owned(),
        "<network name='a\0'/>".to_owned(),
        "<network name='&#0;'/>".to_owned(),
        "<?xml version='1.0' encoding='utf-16'?><network name='n'/>".to_owned(),
        "<?xml version='1.0' encoding='utf-7'?><network name='+ADw-'/>".to_owned(),
    ];
    for driver in DRIVERS {
        let server = Server::start(driver);
        for version in ["v1.0", "v1.1"] {
            let path = format!("/{version}/tenants/red/networks");
            for body in &bodies {
                let begin = std::time::Instant::now();
                let answer = server.ask_in(Format::Xml, "POST", &path, Some(body));
                let shown: String = body.chars().take(80).collect();
                assert_eq!(answer.status, 400, "{shown}: {answer:?}");
                assert!(
                    answer.header("content-type").is_some_and(|it| it.starts_with("application/xml")),
                    "{answer:?}"
                );
                let (root, _) = api::xml::read(answer.body.as_bytes()).expect("it is XML");
                assert!(["Error", "BadRequest", "QuantumError"].contains(&root.as_str()), "{answer:?}");
                assert!(begin.elapsed() < std::time::Duration::from_secs(10), "{shown} took {:?}", begin.elapsed());
            }
            let list = server.ask("GET", &path, None).json();
            assert_eq!(list["networks"].as_array().unwrap().len(), 0, "nothing was made");
        }
        let utf_16: Vec<u8> = "\u{feff}<network name='n'/>".encode_utf16().flat_map(u16::to_le_bytes).collect();
        let head = format!(
            "POST {NETWORKS} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/xml; charset=utf-16\r\n\
             Content-Length: {}\r\n\r\n",
            utf_16.len()
        );
        assert!(server.raw(&[head.as_bytes(), &utf_16].concat()).starts_with("HTTP/1.1 400 "));
    }
}
