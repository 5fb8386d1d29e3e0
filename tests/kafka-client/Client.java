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
import org.apache.kafka.clients.admin.AlterConfigOp;
import org.apache.kafka.clients.admin.ConfigEntry;
import org.apache.kafka.clients.admin.NewPartitions;
import org.apache.kafka.clients.admin.NewTopic;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.clients.producer.RecordMetadata;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.acl.AccessControlEntry;
import org.apache.kafka.common.acl.AclBinding;
import org.apache.kafka.common.acl.AclOperation;
import org.apache.kafka.common.acl.AclPermissionType;
import org.apache.kafka.common.config.ConfigResource;
import org.apache.kafka.common.header.Header;
import org.apache.kafka.common.resource.PatternType;
import org.apache.kafka.common.resource.ResourcePattern;
import org.apache.kafka.common.resource.ResourceType;
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
 *                                      abort=true aborts and leave=true leaves open
 *   consume BROKERS TOPIC              from the beginning to the end as of now: PARTITION OFFSET KEY VALUE HEADERS
 *   create BROKERS TOPIC PARTITIONS [SETTING=VALUE...]
 *                                      Settings are the topic's; replicas=2,1 places each partition on these brokers, the first
 *                                      one leads
 *   alter BROKERS TOPIC SETTING=VALUE...
 *                                      settings of the topic
 *   leaders BROKERS TOPIC              a line for each partition: PARTITION LEADER IN-SYNC, with -1 for no leader
 *   deny BROKERS OPERATION [TOPIC]     to everybody, on the topic or on the cluster; all else there is allowed
 *   allow BROKERS OPERATION [TOPIC]    takes back what deny has done
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
            System.err.println("usage: produce|consume|create|alter|leaders|deny|allow|add-partitions|partitions|id|delete BROKERS ...");
            System.exit(64);
        }
        Properties config = new Properties();
        config.put("bootstrap.servers", args[1]);
        switch (args[0]) {
            case "produce" -> {
                config.putAll(settings(args, 3));
                produce(config, args[2]);
            }
            case "consume" -> consume(config, args[2]);
            case "create" -> {
                try (Admin admin = Admin.create(config)) {
                    admin.createTopics(List.of(topic(args[2], Integer.parseInt(args[3]), settings(args, 4)))).all().get();
                }
            }
            case "alter" -> {
                try (Admin admin = Admin.create(config)) {
                    List<AlterConfigOp> changes = new ArrayList<>();
                    settings(args, 3).forEach((name, value) ->
                            changes.add(new AlterConfigOp(new ConfigEntry(name, value), AlterConfigOp.OpType.SET)));
                    admin.incrementalAlterConfigs(Map.of(new ConfigResource(ConfigResource.Type.TOPIC, args[2]), changes)).all().get();
                }
            }
            case "leaders" -> {
                try (Admin admin = Admin.create(config)) {
                    admin.describeTopics(List.of(args[2])).allTopicNames().get().get(args[2]).partitions().forEach(partition ->
                            System.out.println(partition.partition() + " "
                                    + (partition.leader() == null ? -1 : partition.leader().id()) + " " + partition.isr().size()));
                }
            }
            case "deny" -> {
                try (Admin admin = Admin.create(config)) {
                    admin.createAcls(List.of(
                            acl(args, args[2], AclPermissionType.DENY), acl(args, "ALL", AclPermissionType.ALLOW))).all().get();
                }
            }
            case "allow" -> {
                try (Admin admin = Admin.create(config)) {
                    admin.deleteAcls(List.of(acl(args, args[2], AclPermissionType.DENY).toFilter())).all().get();
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
            case "id" -> {
                try (Admin admin = Admin.create(config)) {
                    System.out.println(admin.describeTopics(List.of(args[2])).allTopicNames().get().get(args[2]).topicId());
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

    /** NAME=VALUE from this argument on. */
    private static Map<String, String> settings(String[] args, int from) {
        Map<String, String> settings = new TreeMap<>();
        for (String setting : List.of(args).subList(from, args.length)) {
            int at = setting.indexOf('=');
            settings.put(setting.substring(0, at), setting.substring(at + 1));
        }
        return settings;
    }

    private static NewTopic topic(String name, int partitions, Map<String, String> settings) {
        String replicas = settings.remove("replicas");
        if (replicas == null) {
            return new NewTopic(name, partitions, (short) 1).configs(settings);
        }
        List<Integer> brokers = new ArrayList<>();
        for (String broker : replicas.split(",")) {
            brokers.add(Integer.valueOf(broker));
        }
        Map<Integer, List<Integer>> places = new TreeMap<>();
        for (int partition = 0; partition < partitions; partition++) {
            places.put(partition, brokers);
        }
        return new NewTopic(name, places).configs(settings);
    }

    private static AclBinding acl(String[] args, String operation, AclPermissionType permission) {
        ResourcePattern resource = args.length > 3
                ? new ResourcePattern(ResourceType.TOPIC, args[3], PatternType.LITERAL)
                : new ResourcePattern(ResourceType.CLUSTER, "kafka-cluster", PatternType.LITERAL);
        return new AclBinding(resource, new AccessControlEntry("User:*", "*", AclOperation.fromString(operation), permission));
    }

    private static void produce(Properties config, String topic) throws Exception {
        config.put("acks", "all");
        config.put("enable.idempotence", "true");
        config.put("max.request.size", "8388608");
        config.put("max.block.ms", "60000");
        boolean aborts = config.remove("abort") != null;
        boolean leaves = config.remove("leave") != null;
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
            if (leaves) {
                System.out.println(sent.size());
                System.out.flush();
                // To close the producer would abort the transaction.
                Runtime.getRuntime().halt(0);
            }
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
