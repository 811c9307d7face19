# A client with gRPC for Ruby; see ../README.md. Generated code is on the load path.
require 'grpc'
require 'grpc/health/v1/health_services_pb'
require 'inference/grpc_service_services_pb'
require 'timbre/v1/timbre_services_pb'

address, ca, token, *paths = ARGV
security = ca == '-' ? :this_channel_is_insecure : GRPC::Core::ChannelCredentials.new(File.read(ca))
WITH = { metadata: { 'authorization' => "Bearer #{token}" }, deadline: Time.now + 60 }.freeze
clips = paths.map { |path| [File.basename(path), File.binread(path)] }

def hex(bytes)
  bytes.unpack1('H*')
end

def status_name
  yield
  'OK'
rescue GRPC::BadStatus => e
  name = GRPC::Core::StatusCodes.constants.find { |c| GRPC::Core::StatusCodes.const_get(c) == e.code }
  name.to_s
end

timbre = Timbre::V1::Timbre::Stub.new(address, security)
clips.each do |name, audio|
  response = timbre.predict(Timbre::V1::PredictRequest.new(audio: audio), **WITH)
  puts "predict #{name} #{hex(response.scores.sort_by(&:index).map(&:score).pack('e*'))}"
end

inference = Inference::GRPCInferenceService::Stub.new(address, security)
questions = clips.map do |name, audio|
  input = Inference::ModelInferRequest::InferInputTensor.new(name: 'AUDIO', datatype: 'BYTES', shape: [1])
  Inference::ModelInferRequest.new(model_name: 'tiny', id: name, inputs: [input],
                                   raw_input_contents: [[audio.bytesize].pack('V') + audio])
end
bits = {}
inference.model_stream_infer(questions.each, **WITH).each do |message|
  answer = message.infer_response
  at = answer.outputs.find_index { |o| o.name == 'PROBABILITIES' }
  bits[answer.id] = hex(answer.raw_output_contents[at])
end
clips.each { |name, _| puts "infer #{name} #{bits[name]}" }

unknown = Timbre::V1::PredictRequest.new(audio: clips[0][1], model: 'nobody')
puts "unknown #{status_name { timbre.predict(unknown, **WITH) }}"

puts "streaming #{status_name { timbre.streaming_predict([].each, **WITH).to_a }}"

health = Grpc::Health::V1::Health::Stub.new(address, security)
question = Grpc::Health::V1::HealthCheckRequest.new(service: 'timbre.v1.Timbre')
watch = health.watch(question, return_op: true, **WITH)
puts "watch #{watch.execute.next.status}"
watch.cancel
