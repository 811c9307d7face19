// A client with grpc-java over Netty; see ../README.md.
import com.google.protobuf.ByteString;
import dev.timbre.inference.GRPCInferenceServiceGrpc;
import dev.timbre.inference.ModelInferRequest;
import dev.timbre.inference.ModelInferResponse;
import dev.timbre.inference.ModelStreamInferResponse;
import dev.timbre.v1.PredictRequest;
import dev.timbre.v1.Score;
import dev.timbre.v1.StreamingPredictResponse;
import dev.timbre.v1.TimbreGrpc;
import io.grpc.ClientInterceptor;
import io.grpc.ManagedChannel;
import io.grpc.Metadata;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import io.grpc.health.v1.HealthCheckRequest;
import io.grpc.health.v1.HealthGrpc;
import io.grpc.netty.GrpcSslContexts;
import io.grpc.netty.NettyChannelBuilder;
import io.grpc.stub.MetadataUtils;
import io.grpc.stub.StreamObserver;
import io.netty.handler.ssl.SslContextBuilder;
import io.netty.handler.ssl.SslProvider;
import java.io.File;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Comparator;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.ArrayBlockingQueue;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.TimeUnit;

public final class Client {
    private static final long TIMEOUT_S = 60;

    private static String hex(byte[] bytes) {
        StringBuilder text = new StringBuilder();
        for (byte b : bytes) {
            text.append(String.format("%02x", b));
        }
        return text.toString();
    }

    private static ManagedChannel dial(String address, String ca) throws Exception {
        NettyChannelBuilder builder = NettyChannelBuilder.forTarget(address);
        if (ca.equals("-")) {
            builder.usePlaintext();
        } else {
            // Through OpenSSL: Debian's Netty has no ALPN for the JDK's own TLS.
            SslContextBuilder ssl = GrpcSslContexts.configure(SslContextBuilder.forClient(), SslProvider.OPENSSL);
            builder.sslContext(ssl.trustManager(new File(ca)).build());
        }
        return builder.build();
    }

    private static void predict(TimbreGrpc.TimbreBlockingStub stub, String clip, ByteString audio) {
        List<Score> scores = new ArrayList<>(stub.predict(PredictRequest.newBuilder().setAudio(audio).build()).getScoresList());
        scores.sort(Comparator.comparingInt(Score::getIndex));
        ByteBuffer bits = ByteBuffer.allocate(4 * scores.size()).order(ByteOrder.LITTLE_ENDIAN);
        scores.forEach(s -> bits.putFloat(s.getScore()));
        System.out.println("predict " + clip + " " + hex(bits.array()));
    }

    /** Collects what a stream says; its end as a Status. */
    private static final class Collector<T> implements StreamObserver<T> {
        final BlockingQueue<Object> said = new ArrayBlockingQueue<>(1000);

        @Override public void onNext(T value) { said.add(value); }

        @Override public void onError(Throwable t) { said.add(Status.fromThrowable(t)); }

        @Override public void onCompleted() { said.add(Status.OK); }

        Object next() throws InterruptedException {
            return said.poll(TIMEOUT_S, TimeUnit.SECONDS);
        }
    }

    /** One BYTES element: its length, then the bytes. */
    private static ByteString element(ByteString audio) {
        ByteBuffer length = ByteBuffer.allocate(4).order(ByteOrder.LITTLE_ENDIAN).putInt(audio.size());
        length.flip();
        return ByteString.copyFrom(length).concat(audio);
    }

    private static void infer(GRPCInferenceServiceGrpc.GRPCInferenceServiceStub stub, Map<String, ByteString> clips,
                              List<String> order) throws Exception {
        Collector<ModelStreamInferResponse> answers = new Collector<>();
        StreamObserver<ModelInferRequest> questions = stub.modelStreamInfer(answers);
        for (String clip : order) {
            ModelInferRequest.InferInputTensor input = ModelInferRequest.InferInputTensor.newBuilder()
                .setName("AUDIO").setDatatype("BYTES").addShape(1).build();
            questions.onNext(ModelInferRequest.newBuilder().setModelName("tiny").setId(clip).addInputs(input)
                .addRawInputContents(element(clips.get(clip))).build());
        }
        questions.onCompleted();
        Map<String, String> bits = new HashMap<>();
        for (Object said = answers.next(); !(said instanceof Status); said = answers.next()) {
            ModelInferResponse response = ((ModelStreamInferResponse) said).getInferResponse();
            for (int i = 0; i < response.getOutputsCount(); i++) {
                if (response.getOutputs(i).getName().equals("PROBABILITIES")) {
                    bits.put(response.getId(), hex(response.getRawOutputContents(i).toByteArray()));
                }
            }
        }
        for (String clip : order) {
            System.out.println("infer " + clip + " " + bits.get(clip));
        }
    }

    private static void streaming(TimbreGrpc.TimbreStub stub) throws Exception {
        Collector<StreamingPredictResponse> answers = new Collector<>();
        stub.streamingPredict(answers).onCompleted();
        Object said = answers.next();
        System.out.println("streaming " + (said instanceof Status ? ((Status) said).getCode() : said));
    }

    public static void main(String[] args) throws Exception {
        ManagedChannel channel = dial(args[0], args[1]);
        Metadata metadata = new Metadata();
        metadata.put(Metadata.Key.of("authorization", Metadata.ASCII_STRING_MARSHALLER), "Bearer " + args[2]);
        ClientInterceptor token = MetadataUtils.newAttachHeadersInterceptor(metadata);
        List<String> order = new ArrayList<>();
        Map<String, ByteString> clips = new HashMap<>();
        for (int i = 3; i < args.length; i++) {
            Path path = Path.of(args[i]);
            order.add(path.getFileName().toString());
            clips.put(path.getFileName().toString(), ByteString.copyFrom(Files.readAllBytes(path)));
        }
        TimbreGrpc.TimbreBlockingStub timbre = TimbreGrpc.newBlockingStub(channel).withInterceptors(token)
            .withDeadlineAfter(TIMEOUT_S, TimeUnit.SECONDS);
        for (String clip : order) {
            predict(timbre, clip, clips.get(clip));
        }
        infer(GRPCInferenceServiceGrpc.newStub(channel).withInterceptors(token), clips, order);
        try {
            timbre.predict(PredictRequest.newBuilder().setAudio(clips.get(order.get(0))).setModel("nobody").build());
            System.out.println("unknown OK");
        } catch (StatusRuntimeException e) {
            System.out.println("unknown " + e.getStatus().getCode());
        }
        streaming(TimbreGrpc.newStub(channel).withInterceptors(token));
        HealthGrpc.HealthBlockingStub health = HealthGrpc.newBlockingStub(channel).withInterceptors(token)
            .withDeadlineAfter(TIMEOUT_S, TimeUnit.SECONDS);
        HealthCheckRequest question = HealthCheckRequest.newBuilder().setService("timbre.v1.Timbre").build();
        System.out.println("watch " + health.watch(question).next().getStatus());
        channel.shutdownNow().awaitTermination(TIMEOUT_S, TimeUnit.SECONDS);
        System.exit(0); // Netty's threads need not end by themselves
    }
}
