module keelson.test/peers

go 1.26.0

require (
	github.com/google/go-attestation v0.6.4
	github.com/google/go-eventlog v0.0.2
	github.com/keelson-project/keelson v0.0.0
)

require (
	github.com/google/go-tpm v0.9.8 // indirect
	go.yaml.in/yaml/v3 v3.0.5 // indirect
	golang.org/x/sys v0.48.0 // indirect
	google.golang.org/protobuf v1.36.12 // indirect
)

replace github.com/keelson-project/keelson => ../../..
