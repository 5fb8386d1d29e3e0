import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Base64;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import java.util.Set;
import java.util.StringJoiner;
import java.util.TreeMap;
import java.util.concurrent.Future;
import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.clients.admin.NewPartitions;
import org.apache.kafka.clients.admin.NewTopic;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.clients.producer.RecordMetadata;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.header.Header;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;
import org.apache.kafka.common.serialization.ByteArraySerializer;

/**
 * An independent Kafka client for the tests: what the server reads was not written, and what it wrote is not counted, by code of
 * the server or by the library it uses.
 *
 * <pre>
 *   produce BROKERS TOPIC [SETTING=VALUE...]
 *                                      a record a line from stdin: KEY VALUE HEADERS [PARTITION]; prints the number written.
 *                                      Settings are the producer's; with a transactional.id all is one transaction, which
 *                                      abort=true aborts
 *   consume BROKERS TOPIC              from the beginning to the end as of now: PARTITION OFFSET KEY VALUE HEADERS
 *   create BROKERS TOPIC PARTITIONS
 *   add-partitions BROKERS TOPIC N     N is the new total
 *   partitions BROKERS TOPIC           prints their number; exit status 2 if there is no such topic
 *   delete BROKERS TOPIC...
 * </pre>
 *
 * KEY and VALUE are base64, an empty one is {@code =}, null is {@code -}; HEADERS is {@code -} or {@code name=BASE64,name=BASE64}.
 */
public final class Client {
    private Client() {}

    public static void main(String[] args) throws Exception {
        if (args.length < 3) {
            System.err.println("usage: produce|consume|create|add-partitions|partitions|delete BROKERS TOPIC [N]");
            System.exit(64);
        }
        Properties config = new Properties();
        config.put("bootstrap.servers", args[1]);
        switch (args[0]) {
            case "produce" -> {
                for (String setting : List.of(args).subList(3, args.length)) {
                    int at = setting.indexOf('=');
                    config.put(setting.substring(0, at), setting.substring(at + 1));
                }
                produce(config, args[2]);
            }
            case "consume" -> consume(config, args[2]);
            case "create" -> {
                try (Admin admin = Admin.create(config)) {
                    admin.createTopics(List.of(new NewTopic(args[2], Integer.parseInt(args[3]), (short) 1))).all().get();
                }
            }
            case "add-partitions" -> {
                try (Admin admin = Admin.create(config)) {
                    admin.createPartitions(Map.of(args[2], NewPartitions.increaseTo(Integer.parseInt(args[3])))).all().get();
                }
            }
            case "partitions" -> {
                try (Admin admin = Admin.create(config)) {
                    if (!admin.listTopics().names().get().contains(args[2])) {
                        System.exit(2);
                    }
                    System.out.println(admin.describeTopics(List.of(args[2])).allTopicNames().get().get(args[2]).partitions().size());
                }
            }
            case "delete" -> {
                try (Admin admin = Admin.create(config)) {
                    Set<String> there = admin.listTopics().names().get();
                    List<String> gone = new ArrayList<>(List.of(args).subList(2, args.length));
                    gone.retainAll(there);
                    admin.deleteTopics(gone).all().get();
                }
            }
            default -> throw new IllegalArgumentException("unknown verb " + args[0]);
        }
    }

    private static void produce(Properties config, String topic) throws Exception {
        config.put("acks", "all");
        config.put("enable.idempotence", "true");
        config.put("max.request.size", "8388608");
        config.put("max.block.ms", "60000");
        boolean aborts = config.remove("abort") != null;
        boolean isTransaction = config.containsKey("transactional.id");
        BufferedReader in = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.US_ASCII));
        List<Future<RecordMetadata>> sent = new ArrayList<>();
        try (KafkaProducer<byte[], byte[]> producer =
                new KafkaProducer<>(config, new ByteArraySerializer(), new ByteArraySerializer())) {
            if (isTransaction) {
                producer.initTransactions();
                producer.beginTransaction();
            }
            for (String line = in.readLine(); line != null; line = in.readLine()) {
                if (line.isEmpty()) {
                    continue;
                }
                String[] field = line.split(" ");
                Integer partition = field.length > 3 ? Integer.valueOf(field[3]) : null;
                ProducerRecord<byte[], byte[]> record =
                        new ProducerRecord<>(topic, partition, bytes(field[0]), bytes(field[1]));
                if (!field[2].equals("-")) {
                    for (String header : field[2].split(",")) {
                        int at = header.indexOf('=');
                        record.headers().add(header.substring(0, at), bytes(header.substring(at + 1)));
                    }
                }
                sent.add(producer.send(record));
            }
            producer.flush();
            if (aborts) {
                producer.abortTransaction();
            } else if (isTransaction) {
                producer.commitTransaction();
            }
        }
        // A record counts only once the broker has confirmed it; the first failure ends the program.
        for (Future<RecordMetadata> one : sent) {
            one.get();
        }
        System.out.println(sent.size());
    }

    private static void consume(Properties config, String topic) throws Exception {
        config.put("enable.auto.commit", "false");
        config.put("max.partition.fetch.bytes", "8388608");
        try (KafkaConsumer<byte[], byte[]> consumer =
                        new KafkaConsumer<>(config, new ByteArrayDeserializer(), new ByteArrayDeserializer());
                PrintStream out = new PrintStream(new java.io.BufferedOutputStream(System.out), false, StandardCharsets.US_ASCII)) {
            List<TopicPartition> partitions = new ArrayList<>();
            consumer.partitionsFor(topic).forEach(p -> partitions.add(new TopicPartition(topic, p.partition())));
            consumer.assign(partitions);
            consumer.seekToBeginning(partitions);
            Map<TopicPartition, Long> left = new TreeMap<>((a, b) -> Integer.compare(a.partition(), b.partition()));
            left.putAll(consumer.endOffsets(partitions));
            while (true) {
                left.entrySet().removeIf(end -> consumer.position(end.getKey()) >= end.getValue());
                if (left.isEmpty()) {
                    return;
                }
                for (ConsumerRecord<byte[], byte[]> record : consumer.poll(Duration.ofMillis(500))) {
                    StringJoiner headers = new StringJoiner(",");
                    headers.setEmptyValue("-");
                    for (Header header : record.headers()) {
                        headers.add(header.key() + "=" + text(header.value()));
                    }
                    out.println(record.partition() + " " + record.offset() + " " + text(record.key()) + " "
                            + text(record.value()) + " " + headers);
                }
            }
        }
    }

    private static byte[] bytes(String field) {
        return switch (field) {
            case "-" -> null;
            case "=" -> new byte[0];
            default -> Base64.getDecoder().decode(field);
        };
    }

    private static String text(byte[] field) {
        return field == null ? "-" : field.length == 0 ? "=" : Base64.getEncoder().encodeToString(field);
    }
}
