// A vendor's backend behind spigate, for every form of `send`. Java 17, the JDK only.
//
// Run: java Backend.java [port]

import com.sun.net.httpserver.HttpExchange;
import com.sun.net.httpserver.HttpServer;
import java.io.IOException;
import java.net.InetSocketAddress;
import java.net.URLDecoder;
import java.nio.charset.StandardCharsets;
import java.util.HashMap;
import java.util.Map;
import java.util.UUID;
import java.util.concurrent.Executors;
import java.util.regex.Matcher;
import java.util.regex.Pattern;

public class Backend {
    // A real backend has a database for both.
    static final Map<String, String> instances = new HashMap<>();
    static final Map<String, String> answered = new HashMap<>(); // by Idempotency-Key
    static final String DONE = "{\"success\":true}";

    public static void main(String[] arguments) throws IOException {
        int port = arguments.length > 0 ? Integer.parseInt(arguments[0]) : 9000;
        HttpServer server = HttpServer.create(new InetSocketAddress("127.0.0.1", port), 0);
        server.setExecutor(Executors.newFixedThreadPool(16));
        server.createContext("/", Backend::handle);
        server.start();
    }

    static void handle(HttpExchange exchange) throws IOException {
        String instance = instance(exchange);
        String action = exchange.getRequestHeaders().getFirst("X-Spi-Action");
        String key = exchange.getRequestHeaders().getFirst("Idempotency-Key");
        String reply;
        synchronized (answered) {
            reply = answered.get(key);
            if (reply == null) {
                reply = answer(action, instance);
                if (reply.startsWith("{\"success\":true") && action.matches("(Create|Renew|Upgrade).*")) {
                    answered.put(key, reply);
                }
            }
        }
        byte[] body = reply.getBytes(StandardCharsets.UTF_8);
        exchange.getResponseHeaders().set("Content-Type", "application/json");
        exchange.sendResponseHeaders(200, body.length);
        exchange.getResponseBody().write(body);
        exchange.close();
    }

    /** What the platform is told. */
    static String answer(String action, String id) {
        if (action.equals("TestConnection")) return DONE;
        if (action.startsWith("Create")) return create(action);
        // Expire and delete can come anew under a known Idempotency-Key (journal off, or lost): never skip
        // them because the key is known, make them harmless to repeat.
        if (action.startsWith("Expire")) {
            instances.replace(id, "expired");
            return DONE;
        }
        if (action.startsWith("Delete")) {
            instances.remove(id);
            return DONE;
        }
        if (!instances.containsKey(id)) return refusal("no such instance");
        if (action.matches("(Renew|Upgrade).*")) {
            instances.put(id, "running");
            return DONE;
        }
        return refusal("unknown action");
    }

    static String create(String action) {
        String id = "ins-" + UUID.randomUUID();
        instances.put(id, "running");
        String login = "\"username\":\"admin\",\"password\":\"" + UUID.randomUUID() + "\"";
        String url = "\"https://crm.example.com\"";
        String info = action.equals("CreateInstance")
            ? "\"instanceInfo\":{\"frontEndUrl\":" + url + ",\"adminUrl\":" + url + "," + login + "}"
            : "\"appInfo\":{\"frontEnd\":{\"url\":" + url + "," + login + "}}";
        return "{\"success\":true,\"instanceId\":\"" + id + "\"," + info + "}";
    }

    static String refusal(String message) {
        return "{\"success\":false,\"message\":\"" + message + "\"}";
    }

    /** The instance that it is about. A real backend has only the form that its configuration says. */
    static String instance(HttpExchange exchange) throws IOException {
        // send = "json"; the JDK reads none, a real backend has a library that does.
        String order = new String(exchange.getRequestBody().readAllBytes(), StandardCharsets.UTF_8);
        Matcher member = Pattern.compile("\"instance_id\":\"([^\"\\\\]*)\"").matcher(order);
        if (member.find()) return member.group(1);
        String header = exchange.getRequestHeaders().getFirst("X-Spi-Param-Instance-Id"); // "headers"
        if (header != null) return URLDecoder.decode(header, StandardCharsets.UTF_8);
        String query = String.valueOf(exchange.getRequestURI().getRawQuery()); // "query", "raw"
        Matcher parameter = Pattern.compile("(?:^|&)instance_id=([^&]*)").matcher(query);
        return parameter.find() ? URLDecoder.decode(parameter.group(1), StandardCharsets.UTF_8) : "";
    }
}
