import static java.nio.charset.StandardCharsets.UTF_8;

import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Instant;
import java.util.Base64;
import java.util.List;
import java.util.stream.Collectors;
import javax.crypto.Mac;
import javax.crypto.spec.SecretKeySpec;

public class Token {
    // The command line: java Token.java USER ROLE SECONDS [SESSION...]
    public static void main(String[] args) throws Exception {
        if (args.length < 3) throw new IllegalArgumentException("USER ROLE SECONDS [SESSION...]");
        List<String> sessions = List.of(args).subList(3, args.length);
        System.out.println(issueToken(args[0], args[1], sessions, Long.parseLong(args[2])));
    }

    /** JWT_SECRET, or what is in the file JWT_SECRET_FILE, without a line break at its end. */
    static byte[] secret() throws Exception {
        String text = System.getenv().getOrDefault("JWT_SECRET", "");
        String path = System.getenv().getOrDefault("JWT_SECRET_FILE", "");
        if (!path.isEmpty()) text = Files.readString(Path.of(path));
        byte[] key = text.replaceFirst("\r?\n\\z", "").getBytes(UTF_8);
        if (key.length < 32) throw new IllegalStateException("JWT_SECRET needs at least 32 bytes");
        return key;
    }

    /**
     * For a user who is signed in to the application. Sessions are the user's own; a single
     * "*" is for agents and admins who may enter all of them.
     */
    static String issueToken(String user, String role, List<String> sessions, long seconds)
            throws Exception {
        long now = Instant.now().getEpochSecond();
        // Role: customer, agent or admin.
        String claims = "{\"sub\":" + json(user) + ",\"role\":" + json(role) + ",\"sessions\":"
                + (sessions.equals(List.of("*")) ? "\"*\""
                        : sessions.stream().map(Token::json).collect(Collectors.joining(",", "[", "]")))
                + optional("iss", "JWT_ISSUER") + optional("aud", "JWT_AUDIENCE")
                + ",\"iat\":" + now + ",\"exp\":" + (now + seconds) + "}";
        String signed = encode("{\"alg\":\"HS256\",\"typ\":\"JWT\"}".getBytes(UTF_8)) + "."
                + encode(claims.getBytes(UTF_8));
        Mac mac = Mac.getInstance("HmacSHA256");
        mac.init(new SecretKeySpec(secret(), "HmacSHA256"));
        return signed + "." + encode(mac.doFinal(signed.getBytes(UTF_8)));
    }

    static String encode(byte[] bytes) {
        return Base64.getUrlEncoder().withoutPadding().encodeToString(bytes);
    }

    static String optional(String claim, String variable) {
        String value = System.getenv().getOrDefault(variable, "");
        return value.isEmpty() ? "" : "," + json(claim) + ":" + json(value);
    }

    /** A JSON string: Java has no JSON of its own; use your library's if there is one. */
    static String json(String text) {
        return text.chars()
                .mapToObj(c -> c < ' ' || c == '"' || c == '\\' ? String.format("\\u%04x", c)
                        : String.valueOf((char) c))
                .collect(Collectors.joining("", "\"", "\""));
    }
}
