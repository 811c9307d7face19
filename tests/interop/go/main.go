// A client with grpc-go; see ../README.md.
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"log"
	"math"
	"os"
	"path/filepath"
	"sort"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	health "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	inference "timbre/inference"
	timbre "timbre/v1"
)

// The names that the other clients print.
var names = map[string]string{"NotFound": "NOT_FOUND", "Unimplemented": "UNIMPLEMENTED"}

func statusName(err error) string {
	code := status.Code(err).String()
	if name, ok := names[code]; ok {
		return name
	}
	return fmt.Sprintf("%s (%v)", code, err)
}

func must(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

func dial(address, ca string) *grpc.ClientConn {
	security := grpc.WithInsecure()
	if ca != "-" {
		pem, err := os.ReadFile(ca)
		must(err)
		pool := x509.NewCertPool()
		pool.AppendCertsFromPEM(pem)
		security = grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{RootCAs: pool}))
	}
	conn, err := grpc.Dial(address, security)
	must(err)
	return conn
}

func predict(ctx context.Context, stub timbre.TimbreClient, clip string, audio []byte) {
	response, err := stub.Predict(ctx, &timbre.PredictRequest{Audio: audio})
	must(err)
	scores := response.Scores
	sort.Slice(scores, func(i, j int) bool { return scores[i].Index < scores[j].Index })
	bits := make([]byte, 4*len(scores))
	for i, s := range scores {
		binary.LittleEndian.PutUint32(bits[4*i:], math.Float32bits(s.Score))
	}
	fmt.Println("predict", clip, hex.EncodeToString(bits))
}

// One BYTES element: its length, then the bytes.
func element(audio []byte) []byte {
	raw := make([]byte, 4+len(audio))
	binary.LittleEndian.PutUint32(raw, uint32(len(audio)))
	copy(raw[4:], audio)
	return raw
}

func infer(ctx context.Context, stub inference.GRPCInferenceServiceClient, clips []string, audio [][]byte) {
	stream, err := stub.ModelStreamInfer(ctx)
	must(err)
	for i := range clips {
		must(stream.Send(&inference.ModelInferRequest{
			ModelName: "tiny", Id: clips[i],
			Inputs:           []*inference.ModelInferRequest_InferInputTensor{{Name: "AUDIO", Datatype: "BYTES", Shape: []int64{1}}},
			RawInputContents: [][]byte{element(audio[i])},
		}))
	}
	must(stream.CloseSend())
	answers := map[string]string{}
	for range clips {
		response, err := stream.Recv()
		must(err)
		for i, output := range response.GetInferResponse().GetOutputs() {
			if output.Name == "PROBABILITIES" {
				answers[response.InferResponse.Id] = hex.EncodeToString(response.InferResponse.RawOutputContents[i])
			}
		}
	}
	for _, clip := range clips {
		fmt.Println("infer", clip, answers[clip])
	}
}

func streaming(ctx context.Context, stub timbre.TimbreClient) {
	stream, err := stub.StreamingPredict(ctx)
	must(err)
	must(stream.CloseSend())
	_, err = stream.Recv()
	fmt.Println("streaming", statusName(err))
}

func watch(ctx context.Context, stub health.HealthClient) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := stub.Watch(ctx, &health.HealthCheckRequest{Service: "timbre.v1.Timbre"})
	must(err)
	response, err := stream.Recv()
	must(err)
	fmt.Println("watch", response.Status)
}

func main() {
	conn := dial(os.Args[1], os.Args[2])
	defer conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+os.Args[3])
	var clips []string
	var audio [][]byte
	for _, path := range os.Args[4:] {
		data, err := os.ReadFile(path)
		must(err)
		clips, audio = append(clips, filepath.Base(path)), append(audio, data)
	}
	stub := timbre.NewTimbreClient(conn)
	for i := range clips {
		predict(ctx, stub, clips[i], audio[i])
	}
	infer(ctx, inference.NewGRPCInferenceServiceClient(conn), clips, audio)
	_, err := stub.Predict(ctx, &timbre.PredictRequest{Audio: audio[0], Model: "nobody"})
	fmt.Println("unknown", statusName(err))
	streaming(ctx, stub)
	watch(ctx, health.NewHealthClient(conn))
}
