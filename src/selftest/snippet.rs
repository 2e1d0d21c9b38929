//! Lines of code that mend a fault, in the languages that vendors write. Data only.

use serde::Serialize;

/// A line or a few in one language.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Snippet {
    /// The language.
    pub language: &'static str,
    /// The code.
    pub code: &'static str,
}

const fn all(php: &'static str, java: &'static str, node: &'static str, python: &'static str) -> [Snippet; 4] {
    [
        Snippet { language: "PHP", code: php },
        Snippet { language: "Java", code: java },
        Snippet { language: "Node", code: node },
        Snippet { language: "Python", code: python },
    ]
}

/// The media type, exactly.
pub const CONTENT_TYPE: [Snippet; 4] = all(
    "header('Content-Type: application/json'); // before any output; PHP's default is text/html",
    "response.setContentType(\"application/json\");\n\
     response.getOutputStream().write(json.getBytes(UTF_8)); // getWriter() adds a charset",
    "res.writeHead(200, { 'Content-Type': 'application/json' }).end(JSON.stringify(reply));\n\
     // Express: the same; res.json() adds a charset",
    "self.send_header(\"Content-Type\", \"application/json\")\n\
     # Django: JsonResponse, FastAPI: JSONResponse; Flask: Response(json.dumps(reply), mimetype=\"application/json\")",
);

/// A body that is JSON and nothing else.
pub const JSON_BODY: [Snippet; 4] = all(
    "ini_set('display_errors', '0'); // no warnings in front\n\
     echo json_encode($reply, JSON_UNESCAPED_UNICODE); exit;",
    "byte[] body = objectMapper.writeValueAsBytes(reply); // the whole body, no template around it",
    "res.end(JSON.stringify(reply));",
    "body = json.dumps(reply).encode()  # not str(reply), which writes True and single quotes",
);

/// `success` as a boolean.
pub const SUCCESS: [Snippet; 4] = all(
    "['success' => true] // not 'true', not 1",
    "Map.of(\"success\", true) // Boolean, not \"true\"",
    "{ success: true } // not 'true', not 1",
    "{\"success\": True}  # not \"true\", not 1",
);

/// One instance for each order, however often it comes.
pub const ONCE: [Snippet; 4] = all(
    "// UNIQUE (order_id, action, debug) in table answers, then in one transaction:\n\
     INSERT IGNORE INTO answers …; // 0 rows: SELECT reply, echo it, exit",
    "// @Table(uniqueConstraints = @UniqueConstraint(columnNames = {\"orderId\", \"action\", \"debug\"}))\n\
     // on DataIntegrityViolationException: return the stored reply",
    "await db.query('INSERT INTO answers (order_id, action, debug) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING');\n\
     // 0 rows: answer with the stored reply",
    "cur.execute(\"INSERT INTO answers (order_id, action, debug) VALUES (%s, %s, %s) ON CONFLICT DO NOTHING\")\n\
     # cur.rowcount == 0: answer with the stored reply",
);

/// The same where spigate stands in front and gives every order a key.
pub const ONCE_BEHIND: [Snippet; 4] = all(
    "$key = $_SERVER['HTTP_IDEMPOTENCY_KEY']; // unique in your database; known: echo the stored reply",
    "String key = request.getHeader(\"Idempotency-Key\"); // unique in your database; known: return the stored reply",
    "const key = req.headers['idempotency-key']; // unique in your database; known: answer with the stored reply",
    "key = self.headers[\"Idempotency-Key\"]  # unique in your database; known: answer with the stored reply",
);

/// An id that nobody else has.
pub const NEW_ID: [Snippet; 4] = all(
    "$id = 'ins-' . bin2hex(random_bytes(16));",
    "String id = \"ins-\" + UUID.randomUUID();",
    "const id = `ins-${crypto.randomUUID()}`;",
    "instance_id = f\"ins-{uuid.uuid4().hex}\"",
);

/// Comparing signatures.
pub const COMPARE: [Snippet; 4] = all(
    "$mac = base64_encode(hash_hmac('sha256', $canonical, $key, true));\n\
     if (!isset($_GET['signature']) || !hash_equals($mac, $_GET['signature'])) { http_response_code(401); exit; }",
    "byte[] mac = hmacSha256.doFinal(canonical.getBytes(UTF_8));\n\
     byte[] expected = Base64.getEncoder().encode(mac); // comparing texts: decoding what came may throw\n\
     if (signature == null || !MessageDigest.isEqual(expected, signature.getBytes(UTF_8))) response.sendError(401);",
    "const mac = crypto.createHmac('sha256', key).update(canonical).digest();\n\
     const given = Buffer.from(signature ?? '', 'base64');\n\
     const ok = given.length === mac.length && crypto.timingSafeEqual(mac, given); // else 401",
    "mac = hmac.new(key, canonical, hashlib.sha256).digest()\n\
     ok = hmac.compare_digest(base64.b64encode(mac), signature.encode())  # else 401",
);

/// A window of time with two sides.
pub const FRESH: [Snippet; 4] = all(
    "$age = time() - strtotime($time); // strtotime: false is not a time\n\
     if ($age > 300 || $age < -60) { http_response_code(401); exit; }",
    "long age = Duration.between(Instant.parse(time), Instant.now()).toSeconds(); // catch DateTimeParseException\n\
     if (age > 300 || age < -60) response.sendError(401);",
    "const age = (Date.now() - Date.parse(time)) / 1000; // NaN: not a time\n\
     if (!(age <= 300 && age >= -60)) return res.writeHead(401).end();",
    "age = (datetime.now(timezone.utc) - parsed).total_seconds()  # except ValueError: not a time\n\
     if not -60 <= age <= 300: return 401",
);

/// Parameters as they came, each with all its values.
pub const REPEATED: [Snippet; 4] = all(
    "// $_GET keeps the last value only: read explode('&', $_SERVER['QUERY_STRING']) and refuse a name that comes twice",
    "if (request.getParameterMap().values().stream().anyMatch(v -> v.length > 1)) response.sendError(400);",
    "const names = [...url.searchParams.keys()];\n\
     if (new Set(names).size !== names.length) return res.writeHead(400).end();",
    "pairs = urllib.parse.parse_qsl(query, keep_blank_values=True)\n\
     if len({name for name, _ in pairs}) != len(pairs): return 400",
);

/// An instance that is gone is as it should be.
pub const HARMLESS: [Snippet; 4] = all(
    "unset($instances[$id]); return ['success' => true]; // also if it was not there",
    "instances.remove(id); return DONE; // also if it was not there",
    "instances.delete(id); return { success: true }; // also if it was not there",
    "instances.pop(instance_id, None); return {\"success\": True}  # also if it was not there",
);
