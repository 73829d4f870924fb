package agentplugin_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/hashicorp/go-hclog"
	nodeattestorv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/agent/nodeattestor/v1"
	configv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/service/common/config/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/keelson-project/keelson/nodeattestor/agentplugin"
	"github.com/keelson-project/keelson/nodeattestor/evidence"
	"github.com/keelson-project/keelson/test/tpmtest"
)

// stream is SPIRE's agent that takes the payload and then ends the stream in some way.
type stream struct {
	grpc.ServerStream
	ctx     context.Context
	end     error
	sent    int
	payload []byte
}

func (s *stream) Context() context.Context { return s.ctx }

func (s *stream) Send(m *nodeattestorv1.PayloadOrChallengeResponse) error {
	s.sent++
	s.payload = append(s.payload, m.GetPayload()...)
	return nil
}

func (s *stream) Recv() (*nodeattestorv1.Challenge, error) { return nil, s.end }

func TestOnlyAStreamThatBreaksIsAnError(t *testing.T) {
	dir := tpmtest.Dir(t)
	config := fmt.Sprintf("tpm = %q\ndata_dir = %q\n", tpmtest.Start(t), dir)
	cases := map[string]struct {
		end    error
		broken bool
	}{
		"SPIRE closes it":                         {io.EOF, false},
		"SPIRE cancels it, the server has spoken": {status.Error(codes.Canceled, "context canceled"), false},
		"it breaks":                               {status.Error(codes.Unavailable, "transport is closing"), true},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			var log bytes.Buffer
			p := agentplugin.New()
			p.SetLogger(hclog.New(&hclog.LoggerOptions{Output: &log}))
			if _, err := p.Configure(t.Context(), &configv1.ConfigureRequest{HclConfiguration: config}); err != nil {
				t.Fatal(err)
			}
			s := &stream{ctx: t.Context(), end: c.end}
			err := p.AidAttestation(s)
			if (err != nil) != c.broken || strings.Contains(log.String(), "[ERROR]") != c.broken {
				t.Errorf("error %v, log %q", err, log.String())
			}
			if s.sent != 1 {
				t.Errorf("%d messages were sent, want the payload", s.sent)
			}
		})
	}
}

// Servers notice a new attestation key, so whoever runs the agent must be told of it.
func TestANewAttestationKeyIsLogged(t *testing.T) {
	base := fmt.Sprintf("tpm = %q\ndata_dir = %q\n", tpmtest.Start(t), tpmtest.Dir(t))
	var log bytes.Buffer
	p := agentplugin.New()
	p.SetLogger(hclog.New(&hclog.LoggerOptions{Output: &log}))
	for _, c := range []struct{ config, want string }{
		{"", `type=ecdsa replaces= `},
		{"", ""},
		{`ak_type = "rsa"`, "type=rsa replaces=ecdsa"},
		{`ak_type = "rsa"`, ""},
	} {
		log.Reset()
		if _, err := p.Configure(t.Context(), &configv1.ConfigureRequest{HclConfiguration: base + c.config}); err != nil {
			t.Fatal(err)
		}
		if err := p.AidAttestation(&stream{ctx: t.Context(), end: io.EOF}); err != nil {
			t.Fatal(err)
		}
		if got := strings.Contains(log.String(), "new attestation key"); got != (c.want != "") || !strings.Contains(log.String(), c.want) {
			t.Errorf("%q: log %q, want %q", c.config, log.String(), c.want)
		}
	}
	_, err := p.Configure(t.Context(), &configv1.ConfigureRequest{HclConfiguration: base + `ak_type = "dsa"`})
	if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "ak_type") {
		t.Errorf("an unknown type: %v", err)
	}
}

// A machine with a TPM 1.2 gets no identity, and its log says which TPM that is.
func TestTPM12IsNamedInTheLog(t *testing.T) {
	var log bytes.Buffer
	p := agentplugin.New()
	p.SetLogger(hclog.New(&hclog.LoggerOptions{Output: &log}))
	config := fmt.Sprintf("tpm = %q\ndata_dir = %q\n", tpmtest.StartTPM12(t), tpmtest.Dir(t))
	if _, err := p.Configure(t.Context(), &configv1.ConfigureRequest{HclConfiguration: config}); err != nil {
		t.Fatal(err)
	}
	s := &stream{ctx: t.Context(), end: io.EOF}
	err := p.AidAttestation(s)
	if err == nil || !strings.Contains(err.Error(), "TPM 1.2") || !strings.Contains(log.String(), "TPM 1.2") || s.sent != 0 {
		t.Errorf("error %v, log %q, %d messages sent; want an error that names TPM 1.2 and no message", err, log.String(), s.sent)
	}
}

// Attesting again derives no key anew, which takes a hardware TPM seconds to minutes.
func TestAttestingAgainDerivesNoKey(t *testing.T) {
	const createPrimary = 0x131
	made := 0
	path := tpmtest.Between(t, tpmtest.Start(t), func(command []byte, forward tpmtest.Forward) []byte {
		if tpmtest.Code(command) == createPrimary {
			made++
		}
		return forward(command)
	})
	p := agentplugin.New()
	config := fmt.Sprintf("tpm = %q\ndata_dir = %q\nak_type = \"rsa\"\n", path, tpmtest.Dir(t))
	configure := func() {
		t.Helper()
		if _, err := p.Configure(t.Context(), &configv1.ConfigureRequest{HclConfiguration: config}); err != nil {
			t.Fatal(err)
		}
	}
	configure()
	for i, want := range []int{2, 2, 2, 4} { // an EK and an AK, for each configuration
		if i == 3 {
			configure()
		}
		if err := p.AidAttestation(&stream{ctx: t.Context(), end: io.EOF}); err != nil {
			t.Fatal(err)
		}
		if made != want {
			t.Errorf("attestation %d: %d keys were derived by then, want %d", i+1, made, want)
		}
	}
}

// What an NV index of an EK certificate holds and nobody can use is told in the log, and to the server where there is no other.
func TestAnUnusableEKCertificateIsLoggedAndTold(t *testing.T) {
	tpm := tpmtest.Start(t)
	if err := tpmtest.StoreNV(tpm, 0x01c0000a, []byte("to be provisioned")); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	p := agentplugin.New()
	p.SetLogger(hclog.New(&hclog.LoggerOptions{Output: &log}))
	if _, err := p.Configure(t.Context(), &configv1.ConfigureRequest{HclConfiguration: fmt.Sprintf("tpm = %q\ndata_dir = %q\n", tpm, tpmtest.Dir(t))}); err != nil {
		t.Fatal(err)
	}
	s := &stream{ctx: t.Context(), end: io.EOF}
	if err := p.AidAttestation(s); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(log.String(), "NV index 0x01c0000a holds no certificate") {
		t.Errorf("log %q", log.String())
	}
	got, err := evidence.ParsePayload(s.payload)
	if err != nil || len(got.EKNotes) != 1 || !strings.Contains(got.EKNotes[0], "0x01c0000a") || len(got.EKPublic) == 0 {
		t.Errorf("payload %+v, %v", got, err)
	}
}
