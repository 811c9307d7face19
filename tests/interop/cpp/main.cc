// A client with gRPC's C++ library; see ../README.md.
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <grpcpp/grpcpp.h>
#include <iostream>
#include <iterator>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "grpc/health/v1/health.grpc.pb.h"
#include "inference/grpc_service.grpc.pb.h"
#include "timbre/v1/timbre.grpc.pb.h"

namespace {

std::string token;

std::string Read(const std::string &path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
}

void Must(const grpc::Status &status) {
    if (!status.ok()) {
        std::cerr << status.error_code() << ": " << status.error_message() << "\n";
        std::exit(1);
    }
}

void Prepare(grpc::ClientContext *context) {
    context->AddMetadata("authorization", "Bearer " + token);
    context->set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(60));
}

std::string Name(const grpc::Status &status) {
    switch (status.error_code()) {
    case grpc::StatusCode::NOT_FOUND: return "NOT_FOUND";
    case grpc::StatusCode::UNIMPLEMENTED: return "UNIMPLEMENTED";
    default: return std::to_string(status.error_code()) + " " + status.error_message();
    }
}

std::string Hex(const std::string &bytes) {
    static const char digits[] = "0123456789abcdef";
    std::string text;
    for (unsigned char b : bytes) {
        text += digits[b >> 4];
        text += digits[b & 15];
    }
    return text;
}

struct Clip {
    std::string name, audio;
};

void Predict(timbre::v1::Timbre::Stub *stub, const Clip &clip) {
    grpc::ClientContext context;
    timbre::v1::PredictRequest request;
    timbre::v1::PredictResponse response;
    Prepare(&context);
    request.set_audio(clip.audio);
    Must(stub->Predict(&context, request, &response));
    std::vector<timbre::v1::Score> scores(response.scores().begin(), response.scores().end());
    std::sort(scores.begin(), scores.end(), [](const auto &a, const auto &b) { return a.index() < b.index(); });
    std::string bits;
    for (const auto &s : scores) {
        float score = s.score(); // this program runs where floats are little-endian
        bits.append(reinterpret_cast<const char *>(&score), sizeof score);
    }
    std::cout << "predict " << clip.name << " " << Hex(bits) << "\n";
}

// One BYTES element: its length, then the bytes.
std::string Element(const std::string &audio) {
    uint32_t length = static_cast<uint32_t>(audio.size());
    return std::string(reinterpret_cast<const char *>(&length), sizeof length) + audio;
}

void Infer(inference::GRPCInferenceService::Stub *stub, const std::vector<Clip> &clips) {
    grpc::ClientContext context;
    Prepare(&context);
    auto stream = stub->ModelStreamInfer(&context);
    for (const auto &clip : clips) {
        inference::ModelInferRequest request;
        request.set_model_name("tiny");
        request.set_id(clip.name);
        auto *input = request.add_inputs();
        input->set_name("AUDIO");
        input->set_datatype("BYTES");
        input->add_shape(1);
        request.add_raw_input_contents(Element(clip.audio));
        stream->Write(request);
    }
    stream->WritesDone();
    std::map<std::string, std::string> bits;
    inference::ModelStreamInferResponse response;
    while (stream->Read(&response)) {
        const auto &answer = response.infer_response();
        for (int i = 0; i < answer.outputs_size(); i++)
            if (answer.outputs(i).name() == "PROBABILITIES")
                bits[answer.id()] = Hex(answer.raw_output_contents(i));
    }
    Must(stream->Finish());
    for (const auto &clip : clips)
        std::cout << "infer " << clip.name << " " << bits[clip.name] << "\n";
}

void Unknown(timbre::v1::Timbre::Stub *stub, const Clip &clip) {
    grpc::ClientContext context;
    timbre::v1::PredictRequest request;
    timbre::v1::PredictResponse response;
    Prepare(&context);
    request.set_audio(clip.audio);
    request.set_model("nobody");
    std::cout << "unknown " << Name(stub->Predict(&context, request, &response)) << "\n";
}

void Streaming(timbre::v1::Timbre::Stub *stub) {
    grpc::ClientContext context;
    timbre::v1::StreamingPredictResponse response;
    Prepare(&context);
    auto stream = stub->StreamingPredict(&context);
    stream->WritesDone();
    while (stream->Read(&response)) {
    }
    std::cout << "streaming " << Name(stream->Finish()) << "\n";
}

void Watch(grpc::health::v1::Health::Stub *stub) {
    grpc::ClientContext context;
    grpc::health::v1::HealthCheckRequest request;
    grpc::health::v1::HealthCheckResponse response;
    Prepare(&context);
    request.set_service("timbre.v1.Timbre");
    auto stream = stub->Watch(&context, request);
    if (!stream->Read(&response))
        Must(stream->Finish());
    std::cout << "watch " << grpc::health::v1::HealthCheckResponse::ServingStatus_Name(response.status()) << "\n";
    context.TryCancel();
}

} // namespace

int main(int argc, char **argv) {
    if (argc < 5)
        return 2;
    auto credentials = grpc::InsecureChannelCredentials();
    if (std::strcmp(argv[2], "-") != 0) {
        grpc::SslCredentialsOptions options;
        options.pem_root_certs = Read(argv[2]);
        credentials = grpc::SslCredentials(options);
    }
    token = argv[3];
    auto channel = grpc::CreateChannel(argv[1], credentials);
    std::vector<Clip> clips;
    for (int i = 4; i < argc; i++) {
        std::string path = argv[i];
        clips.push_back({path.substr(path.rfind('/') + 1), Read(path)});
    }
    auto stub = timbre::v1::Timbre::NewStub(channel);
    for (const auto &clip : clips)
        Predict(stub.get(), clip);
    Infer(inference::GRPCInferenceService::NewStub(channel).get(), clips);
    Unknown(stub.get(), clips[0]);
    Streaming(stub.get());
    Watch(grpc::health::v1::Health::NewStub(channel).get());
}
