import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.net.URI;
import java.net.http.HttpClient;
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.util.HashSet;
import java.util.Map;
import java.util.Set;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CompletionStage;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;
import java.util.function.Predicate;
import okhttp3.OkHttpClient;
import okhttp3.Request;
import okhttp3.Response;
import okhttp3.WebSocketListener;

/** java Interop jdk | okhttp: the steps of ../README.md. */
public final class Interop {
    private static final long TIMEOUT_SECONDS = 20;
    private static final ObjectMapper JSON = new ObjectMapper();

    /** What the steps need of a library. Frames, and the code of a close, come to {@link Events}. */
    private interface Client {
        String protocol();

        void send(String text) throws Exception;

        /** False where the library can't send a ping frame; otherwise the pong has come. */
        boolean ping() throws Exception;

        void close() throws Exception;
    }

    private static final class Events {
        final BlockingQueue<String> frames = new LinkedBlockingQueue<>();
        final CompletableFuture<Integer> closed = new CompletableFuture<>();
    }

    public static void main(String[] arguments) throws Exception {
        String url = System.getenv("INTEROP_URL");
        Events events = new Events();
        Client client =
                switch (arguments[0]) {
                    case "jdk" -> new OverJdk(url, events);
                    case "okhttp" -> new OverOkHttp(url, events);
                    default -> throw new IllegalArgumentException(arguments[0]);
                };
        steps(client, events);
        // OkHttp's threads would keep the process for a minute.
        System.exit(0);
    }

    private static void steps(Client client, Events events) throws Exception {
        until(events, "connection_established", frame -> {
            require(frame.path("type").asText().equals("connection_established"), "another first frame: " + frame);
            return true;
        });
        require("livechat.v1".equals(client.protocol()), "the subprotocol is " + client.protocol());
        System.out.println("connect");

        say(client, events, "small", "Grüße, José 😀");
        System.out.println("send\nreceive");
        say(client, events, "large", "x".repeat(60_000));
        System.out.println("large");

        System.out.println(client.ping() ? "ping" : "no-ping");

        Thread.sleep(6_500);
        client.send("{\"type\":\"ping\",\"request_id\":\"after\"}");
        until(events, "pong", frame ->
                frame.path("type").asText().equals("pong") && frame.path("request_id").asText().equals("after"));
        System.out.println("alive");

        client.close();
        int code = events.closed.get(TIMEOUT_SECONDS, TimeUnit.SECONDS);
        require(code == 1000, "closed with " + code);
        System.out.println("close");
    }

    private static void say(Client client, Events events, String id, String message) throws Exception {
        Map<String, Object> data = Map.of("message", message, "client_message_id", id);
        client.send(JSON.writeValueAsString(Map.of("type", "send_message", "data", data)));
        Set<String> missing = new HashSet<>(Set.of("message_sent", "new_message"));
        until(events, "message_sent and new_message of " + id, frame -> {
            JsonNode answer = frame.path("data");
            if (answer.path("client_message_id").asText().equals(id)) {
                missing.remove(frame.path("type").asText());
                require(!frame.path("type").asText().equals("new_message")
                        || answer.path("message").asText().equals(message), "the text came back changed");
            }
            return missing.isEmpty();
        });
    }

    private static void until(Events events, String what, Predicate<JsonNode> wanted) throws Exception {
        long deadline = System.nanoTime() + TimeUnit.SECONDS.toNanos(TIMEOUT_SECONDS);
        while (true) {
            String text = events.frames.poll(deadline - System.nanoTime(), TimeUnit.NANOSECONDS);
            require(text != null, "no " + what);
            if (wanted.test(JSON.readTree(text))) {
                return;
            }
        }
    }

    private static void require(boolean condition, String what) {
        if (!condition) {
            throw new IllegalStateException(what);
        }
    }

    private static final class OverJdk implements Client, java.net.http.WebSocket.Listener {
        private final Events events;
        private final StringBuilder text = new StringBuilder();
        private final CompletableFuture<String> pong = new CompletableFuture<>();
        private final java.net.http.WebSocket socket;

        OverJdk(String url, Events events) throws Exception {
            this.events = events;
            socket = HttpClient.newHttpClient().newWebSocketBuilder().subprotocols("livechat.v1")
                    .buildAsync(URI.create(url), this).get(TIMEOUT_SECONDS, TimeUnit.SECONDS);
        }

        @Override
        public String protocol() {
            return socket.getSubprotocol();
        }

        @Override
        public void send(String text) throws Exception {
            socket.sendText(text, true).get(TIMEOUT_SECONDS, TimeUnit.SECONDS);
        }

        @Override
        public boolean ping() throws Exception {
            socket.sendPing(ByteBuffer.wrap("are you there".getBytes(StandardCharsets.UTF_8)));
            require(pong.get(TIMEOUT_SECONDS, TimeUnit.SECONDS).equals("are you there"), "another pong");
            return true;
        }

        @Override
        public void close() {
            socket.sendClose(java.net.http.WebSocket.NORMAL_CLOSURE, "done");
        }

        @Override
        public CompletionStage<?> onText(java.net.http.WebSocket webSocket, CharSequence part, boolean last) {
            text.append(part);
            if (last) {
                events.frames.add(text.toString());
                text.setLength(0);
            }
            webSocket.request(1);
            return null;
        }

        @Override
        public CompletionStage<?> onPong(java.net.http.WebSocket webSocket, ByteBuffer payload) {
            pong.complete(StandardCharsets.UTF_8.decode(payload).toString());
            webSocket.request(1);
            return null;
        }

        @Override
        public CompletionStage<?> onClose(java.net.http.WebSocket webSocket, int code, String reason) {
            events.closed.complete(code);
            return null;
        }

        @Override
        public void onError(java.net.http.WebSocket webSocket, Throwable error) {
            events.closed.completeExceptionally(error);
        }
    }

    private static final class OverOkHttp extends WebSocketListener implements Client {
        private final Events events;
        private final CompletableFuture<String> protocol = new CompletableFuture<>();
        private final okhttp3.WebSocket socket;

        OverOkHttp(String url, Events events) {
            this.events = events;
            Request request = new Request.Builder().url(url).header("Sec-WebSocket-Protocol", "livechat.v1").build();
            // It pings by itself and fails the connection without a pong, but has no call for a ping.
            OkHttpClient client = new OkHttpClient.Builder().pingInterval(1, TimeUnit.SECONDS).build();
            socket = client.newWebSocket(request, this);
        }

        @Override
        public String protocol() {
            return protocol.join();
        }

        @Override
        public void send(String text) {
            require(socket.send(text), "the client takes nothing more");
        }

        @Override
        public boolean ping() throws Exception {
            // Two of its own pings: a missing pong would have failed the connection.
            Thread.sleep(2_500);
            require(!events.closed.isDone(), "closed");
            return true;
        }

        @Override
        public void close() {
            socket.close(1000, "done");
        }

        @Override
        public void onOpen(okhttp3.WebSocket webSocket, Response response) {
            protocol.complete(response.header("Sec-WebSocket-Protocol"));
        }

        @Override
        public void onMessage(okhttp3.WebSocket webSocket, String text) {
            events.frames.add(text);
        }

        @Override
        public void onClosed(okhttp3.WebSocket webSocket, int code, String reason) {
            events.closed.complete(code);
        }

        @Override
        public void onFailure(okhttp3.WebSocket webSocket, Throwable error, Response response) {
            protocol.completeExceptionally(error);
            events.closed.completeExceptionally(error);
        }
    }
}
