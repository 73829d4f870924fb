package image_test

import (
	"encoding/base64"
	"encoding/hex"
	"strings"
	"testing"
	"time"

	protobundle "github.com/sigstore/protobuf-specs/gen/pb-go/bundle/v1"
	protocommon "github.com/sigstore/protobuf-specs/gen/pb-go/common/v1"
	protodsse "github.com/sigstore/protobuf-specs/gen/pb-go/dsse"
	protorekor "github.com/sigstore/protobuf-specs/gen/pb-go/rekor/v1"
	"github.com/sigstore/sigstore-go/pkg/root"
	"github.com/sigstore/sigstore-go/pkg/testing/ca"
	"github.com/sigstore/sigstore-go/pkg/tlog"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/keelson-project/keelson/workloadattestor/image"
)

const (
	builder = "https://github.com/example/app/.github/workflows/build.yml@refs/heads/main"
	actions = "https://token.actions.githubusercontent.com"
)

// instance is a Sigstore instance of the test's own.
type instance struct {
	t  *testing.T
	ca *ca.VirtualSigstore
}

func newInstance(t *testing.T) instance {
	t.Helper()
	virtual, err := ca.NewVirtualSigstore()
	if err != nil {
		t.Fatal(err)
	}
	return instance{t, virtual}
}

// trustedRoot says whom to trust: the CA, and the witnesses that are asked for.
func (i instance) trustedRoot(log, timestamps bool) []byte {
	i.t.Helper()
	logs, authorities := map[string]*root.TransparencyLog{}, []root.TimestampingAuthority{}
	if log {
		for id, l := range i.ca.RekorLogs() {
			raw, err := hex.DecodeString(id)
			if err != nil {
				i.t.Fatal(err)
			}
			l.ID = raw // the virtual CA writes it in hex
			logs[id] = l
		}
	}
	if timestamps {
		authorities = i.ca.TimestampingAuthorities()
	}
	trusted, err := root.NewTrustedRoot(root.TrustedRootMediaType01, i.ca.FulcioCertificateAuthorities(), nil, authorities, logs)
	if err != nil {
		i.t.Fatal(err)
	}
	raw, err := trusted.MarshalJSON()
	if err != nil {
		i.t.Fatal(err)
	}
	return raw
}

// bundle signs a statement by a certificate of this identity.
func (i instance) bundle(identity, issuer, statement string, log, timestamps bool) []byte {
	i.t.Helper()
	entity, err := i.ca.AttestAtTime(identity, issuer, []byte(statement), time.Now().Add(5*time.Minute), true)
	if err != nil {
		i.t.Fatal(err)
	}
	verification, err1 := entity.VerificationContent()
	signature, err2 := entity.SignatureContent()
	entries, err3 := entity.TlogEntries()
	stamps, err4 := entity.Timestamps()
	for _, err := range []error{err1, err2, err3, err4} {
		if err != nil {
			i.t.Fatal(err)
		}
	}
	envelope := signature.EnvelopeContent().RawEnvelope()
	payload, err := envelope.DecodeB64Payload()
	if err != nil {
		i.t.Fatal(err)
	}
	sig, err := base64.StdEncoding.DecodeString(envelope.Signatures[0].Sig)
	if err != nil {
		i.t.Fatal(err)
	}
	b := &protobundle.Bundle{
		MediaType: "application/vnd.dev.sigstore.bundle.v0.3+json",
		VerificationMaterial: &protobundle.VerificationMaterial{
			Content: &protobundle.VerificationMaterial_Certificate{Certificate: &protocommon.X509Certificate{RawBytes: verification.Certificate().Raw}},
		},
		Content: &protobundle.Bundle_DsseEnvelope{DsseEnvelope: &protodsse.Envelope{Payload: payload, PayloadType: envelope.PayloadType,
			Signatures: []*protodsse.Signature{{Sig: sig}}}},
	}
	if log {
		for _, e := range entries {
			b.VerificationMaterial.TlogEntries = append(b.VerificationMaterial.TlogEntries, i.logged(e.TransparencyLogEntry()))
		}
	}
	if timestamps {
		b.VerificationMaterial.TimestampVerificationData = &protobundle.TimestampVerificationData{}
		for _, s := range stamps {
			b.VerificationMaterial.TimestampVerificationData.Rfc3161Timestamps = append(b.VerificationMaterial.TimestampVerificationData.Rfc3161Timestamps,
				&protocommon.RFC3161SignedTimestamp{SignedTimestamp: s})
		}
	}
	raw, err := protojson.Marshal(b)
	if err != nil {
		i.t.Fatal(err)
	}
	return raw
}

// logged adds what the virtual log leaves out of an entry: its kind, and the log's promise, which says when it was made.
func (i instance) logged(e *protorekor.TransparencyLogEntry) *protorekor.TransparencyLogEntry {
	i.t.Helper()
	promise, err := i.ca.RekorSignPayload(tlog.RekorPayload{Body: base64.StdEncoding.EncodeToString(e.GetCanonicalizedBody()),
		IntegratedTime: e.GetIntegratedTime(), LogIndex: e.GetLogIndex(), LogID: hex.EncodeToString(e.GetLogId().GetKeyId())})
	if err != nil {
		i.t.Fatal(err)
	}
	e.KindVersion = &protorekor.KindVersion{Kind: "dsse", Version: "0.0.1"}
	e.InclusionPromise = &protorekor.InclusionPromise{SignedEntryTimestamp: promise}
	return e
}

func TestKeylessIdentities(t *testing.T) {
	mine, other := newInstance(t), newInstance(t)
	exact := image.Keyless{Issuer: actions, Subject: builder}
	cases := map[string]struct {
		rule           image.Keyless
		by             instance
		identity       string
		issuer         string
		log, timestamp bool // in the bundle
		trustLog       bool
		trustTime      bool
		predicate      string
		digest         string
		want           bool
	}{
		"witnessed by the log":       {rule: exact, by: mine, identity: builder, issuer: actions, log: true, trustLog: true, want: true},
		"witnessed by a timestamp":   {rule: exact, by: mine, identity: builder, issuer: actions, timestamp: true, trustTime: true, want: true},
		"either will do":             {rule: exact, by: mine, identity: builder, issuer: actions, timestamp: true, trustLog: true, trustTime: true, want: true},
		"by a pattern":               {rule: image.Keyless{IssuerPattern: `https://token\.actions\..*`, SubjectPattern: `https://github\.com/example/.*`}, by: mine, identity: builder, issuer: actions, log: true, trustLog: true, want: true},
		"a pattern has to match all": {rule: image.Keyless{Issuer: actions, SubjectPattern: `github\.com/example`}, by: mine, identity: builder, issuer: actions, log: true, trustLog: true},
		"no witness":                 {rule: exact, by: mine, identity: builder, issuer: actions, trustLog: true, trustTime: true},
		"a witness no one trusts":    {rule: exact, by: mine, identity: builder, issuer: actions, log: true, trustTime: true},
		"another subject":            {rule: exact, by: mine, identity: "https://github.com/evil/app/.github/workflows/build.yml@refs/heads/main", issuer: actions, log: true, trustLog: true},
		"another issuer":             {rule: exact, by: mine, identity: builder, issuer: "https://evil.example", log: true, trustLog: true},
		"another Sigstore instance":  {rule: exact, by: other, identity: builder, issuer: actions, log: true, timestamp: true, trustLog: true, trustTime: true},
		"an attestation":             {rule: exact, by: mine, identity: builder, issuer: actions, log: true, trustLog: true, predicate: "https://slsa.dev/provenance/v1"},
		"of another image":           {rule: exact, by: mine, identity: builder, issuer: actions, log: true, trustLog: true, digest: "sha256:" + strings.Repeat("0", 64)},
	}
	for title, tc := range cases {
		t.Run(title, func(t *testing.T) {
			img := read(t, "cosign-3.1.3", "image-manifest.json")
			subject, predicate := digestOf(img), signs
			if tc.predicate != "" {
				predicate = tc.predicate
			}
			named := subject
			if tc.digest != "" {
				named = tc.digest
			}
			f := files{"manifests/" + subject: img}
			f.refer(t, subject, bundleType, bundleType, nil, tc.by.bundle(tc.identity, tc.issuer, statement(named, predicate), tc.log, tc.timestamp))
			host := f.serve(t)
			tc.rule.TrustedRoot = mine.trustedRoot(tc.trustLog, tc.trustTime)
			v, err := image.NewKeylessVerifier("ci", tc.rule)
			if err != nil {
				t.Fatal(err)
			}
			got, err := checkerOf(t, host, v).Check(t.Context(), image.Running{Ref: host + "/app@" + subject})
			if (len(got.SignedBy) == 1) != tc.want {
				t.Errorf("got %s", describe(got, err))
			}
			if len(got.Signatures) > 0 && (got.Signatures[0].Subject != tc.identity || got.Signatures[0].Format != image.FormatBundle) {
				t.Errorf("signatures %+v", got.Signatures)
			}
		})
	}
}

func TestKeylessVerifierRefuses(t *testing.T) {
	mine := newInstance(t)
	good := mine.trustedRoot(true, true)
	cases := map[string]struct {
		rule image.Keyless
		want string
	}{
		"no issuer":              {image.Keyless{TrustedRoot: good, Subject: "x"}, "issuer or issuer_pattern"},
		"no subject":             {image.Keyless{TrustedRoot: good, Issuer: "x"}, "subject or subject_pattern"},
		"both of one":            {image.Keyless{TrustedRoot: good, Issuer: "x", IssuerPattern: "y", Subject: "x"}, "issuer or issuer_pattern"},
		"a pattern that is none": {image.Keyless{TrustedRoot: good, Issuer: "x", SubjectPattern: "*@example.org"}, "subject_pattern"},
		"no trusted root":        {image.Keyless{Issuer: "x", Subject: "x"}, "trusted root"},
		"a root that is none":    {image.Keyless{TrustedRoot: []byte("{}"), Issuer: "x", Subject: "x"}, "trusted root"},
		"no witness in it":       {image.Keyless{TrustedRoot: mine.trustedRoot(false, false), Issuer: "x", Subject: "x"}, "neither a transparency log"},
	}
	for title, tc := range cases {
		t.Run(title, func(t *testing.T) {
			if _, err := image.NewKeylessVerifier("ci", tc.rule); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want an error with %q", err, tc.want)
			}
		})
	}
}
