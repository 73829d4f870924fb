package image_test

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"strings"
	"testing"
	"time"

	"github.com/sigstore/sigstore-go/pkg/tlog"

	"github.com/keelson-project/keelson/workloadattestor/image"
	"github.com/keelson-project/keelson/workloadattestor/image/imagetest"
)

// cosign2 signs a payload by a certificate of this identity, and returns its layer's annotations as cosign 2 writes them.
func (i instance) cosign2(identity, issuer string, payload []byte) map[string]string {
	i.t.Helper()
	entity, err := i.ca.SignAtTime(identity, issuer, payload, time.Now().Add(5*time.Minute))
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
	e := entries[0].TransparencyLogEntry()
	logged := tlog.RekorPayload{Body: base64.StdEncoding.EncodeToString(e.GetCanonicalizedBody()),
		IntegratedTime: e.GetIntegratedTime(), LogIndex: e.GetLogIndex(), LogID: hex.EncodeToString(e.GetLogId().GetKeyId())}
	promise, err := i.ca.RekorSignPayload(logged)
	if err != nil {
		i.t.Fatal(err)
	}
	rekor, err1 := json.Marshal(map[string]any{"SignedEntryTimestamp": promise, "Payload": logged})
	stamp, err2 := json.Marshal(map[string]any{"SignedRFC3161Timestamp": stamps[0]})
	if err1 != nil || err2 != nil {
		i.t.Fatal(err1, err2)
	}
	return map[string]string{
		"dev.cosignproject.cosign/signature":   base64.StdEncoding.EncodeToString(signature.Signature()),
		"dev.sigstore.cosign/certificate":      string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: verification.Certificate().Raw})),
		"dev.sigstore.cosign/bundle":           string(rekor),
		"dev.sigstore.cosign/rfc3161timestamp": string(stamp),
	}
}

// TestKeylessSignaturesOfCosign2 under the classic tag, with certificate and log entry in annotations.
func TestKeylessSignaturesOfCosign2(t *testing.T) {
	mine, other := newInstance(t), newInstance(t)
	exact := image.Keyless{Issuer: actions, Subject: builder}
	img := read(t, "cosign-3.1.3", "image-manifest.json")
	subject := digestOf(img)
	payload := func(digest string) []byte {
		raw, err := imagetest.Payload("registry.example/app", digest)
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	right := payload(subject)
	drop := func(names ...string) func(map[string]string) {
		return func(a map[string]string) {
			for _, n := range names {
				delete(a, "dev.sigstore.cosign/"+n)
			}
		}
	}
	// from another signature by the same identity, of another payload
	stolen := mine.cosign2(builder, actions, payload("sha256:"+strings.Repeat("0", 64)))
	cases := map[string]struct {
		by                  instance
		identity, issuer    string
		payload             []byte
		change              func(annotations map[string]string)
		trustLog, trustTime bool
		want                bool
		why                 string
	}{
		"witnessed by the log":     {by: mine, change: drop("rfc3161timestamp"), trustLog: true, want: true},
		"witnessed by a timestamp": {by: mine, change: drop("bundle"), trustTime: true, want: true},
		"either will do":           {by: mine, change: drop("bundle"), trustLog: true, trustTime: true, want: true},
		"both":                     {by: mine, trustLog: true, trustTime: true, want: true},
		"no witness":               {by: mine, change: drop("bundle", "rfc3161timestamp"), trustLog: true, trustTime: true, why: "certificate"},
		"a witness no one trusts":  {by: mine, change: drop("rfc3161timestamp"), trustTime: true, why: "certificate"},
		"no certificate":           {by: mine, change: drop("certificate"), trustLog: true, why: "none of 1 signatures"},
		"another subject":          {by: mine, identity: "https://github.com/evil/app", trustLog: true, why: "certificate"},
		"another issuer":           {by: mine, issuer: "https://evil.example", trustLog: true, why: "certificate"},
		"another instance":         {by: other, trustLog: true, trustTime: true, why: "certificate"},
		"another image":            {by: mine, payload: payload("sha256:" + strings.Repeat("0", 64)), trustLog: true, why: "but for another image"},
		"something that is no payload": {by: mine, payload: []byte(`{"critical":{"image":{"docker-manifest-digest":"` + subject + `"},"type":"other"}}`), trustLog: true,
			why: "signature payload has type"},
		"another's log entry": {by: mine, trustLog: true, why: "does not match", change: func(a map[string]string) {
			a["dev.sigstore.cosign/bundle"] = stolen["dev.sigstore.cosign/bundle"]
			delete(a, "dev.sigstore.cosign/rfc3161timestamp")
		}},
		"another's certificate": {by: mine, trustLog: true, trustTime: true, why: "certificate", change: func(a map[string]string) {
			a["dev.sigstore.cosign/certificate"] = stolen["dev.sigstore.cosign/certificate"]
		}},
		"another's signature": {by: mine, trustLog: true, trustTime: true, why: "certificate", change: func(a map[string]string) {
			a["dev.cosignproject.cosign/signature"] = stolen["dev.cosignproject.cosign/signature"]
		}},
		"all of another's": {by: mine, trustLog: true, trustTime: true, why: "certificate", change: func(a map[string]string) {
			for k, v := range stolen {
				a[k] = v
			}
		}},
		"a certificate that is none": {by: mine, trustLog: true, why: "no PEM block", change: func(a map[string]string) { a["dev.sigstore.cosign/certificate"] = "x" }},
		"a certificate of garbage": {by: mine, trustLog: true, why: "by its key", change: func(a map[string]string) {
			a["dev.sigstore.cosign/certificate"] = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
		}},
		"a log entry that is none": {by: mine, trustLog: true, why: "annotation dev.sigstore.cosign/bundle", change: func(a map[string]string) { a["dev.sigstore.cosign/bundle"] = "{}" }},
		"a log entry given twice":  {by: mine, trustLog: true, why: "twice", change: func(a map[string]string) { a["dev.sigstore.cosign/bundle"] = `{"Payload":{},"payload":{}}` }},
		"a timestamp that is none": {by: mine, trustTime: true, why: "rfc3161timestamp", change: func(a map[string]string) { a["dev.sigstore.cosign/rfc3161timestamp"] = "[]" }},
		"an annotation of great size": {by: mine, trustLog: true, why: "the limit is", change: func(a map[string]string) {
			a["dev.sigstore.cosign/bundle"] = strings.Repeat("x", 64<<10+1)
		}},
	}
	for title, tc := range cases {
		t.Run(title, func(t *testing.T) {
			if tc.identity == "" {
				tc.identity = builder
			}
			if tc.issuer == "" {
				tc.issuer = actions
			}
			if tc.payload == nil {
				tc.payload = right
			}
			annotations := tc.by.cosign2(tc.identity, tc.issuer, tc.payload)
			if tc.change != nil {
				tc.change(annotations)
			}
			rule := exact
			rule.TrustedRoot = mine.trustedRoot(tc.trustLog, tc.trustTime)
			got, err := checkCosign2(t, img, tc.payload, annotations, rule)
			if text := describe(got, err); (len(got.SignedBy) == 1) != tc.want || !strings.Contains(text, tc.why) {
				t.Errorf("got %s\nwant %q", text, tc.why)
			}
			if len(got.Signatures) > 0 && (got.Signatures[0].Subject != builder || got.Signatures[0].Format != image.FormatSimpleSigning) {
				t.Errorf("signatures %+v", got.Signatures)
			}
		})
	}
}

// checkCosign2 serves a signature under the classic tag.
func checkCosign2(t *testing.T, img, payload []byte, annotations map[string]string, rule image.Keyless) (image.Result, error) {
	t.Helper()
	subject := digestOf(img)
	layer := digestOf(payload)
	manifest, err := json.Marshal(map[string]any{"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
		"config": map[string]any{"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digestOf([]byte("{}")), "size": 2},
		"layers": []any{map[string]any{"mediaType": "application/vnd.dev.cosign.simplesigning.v1+json", "digest": layer, "size": len(payload), "annotations": annotations}}})
	if err != nil {
		t.Fatal(err)
	}
	f := files{"manifests/" + subject: img, "manifests/" + imagetest.Tag(subject): manifest, "blobs/" + layer: payload}
	host := f.serve(t)
	v, err := image.NewKeylessVerifier("ci", rule)
	if err != nil {
		t.Fatal(err)
	}
	return checkerOf(t, host, v).Check(t.Context(), image.Running{Ref: host + "/app@" + subject})
}

// TestAByteOfAKeylessSignatureOfCosign2: whatever byte of payload, signature, certificate or entry is another one, it counts no more.
func TestAByteOfAKeylessSignatureOfCosign2(t *testing.T) {
	mine := newInstance(t)
	img := read(t, "cosign-3.1.3", "image-manifest.json")
	payload, err := imagetest.Payload("registry.example/app", digestOf(img))
	if err != nil {
		t.Fatal(err)
	}
	rule := image.Keyless{Issuer: actions, Subject: builder, TrustedRoot: mine.trustedRoot(true, false)}
	good := mine.cosign2(builder, actions, payload)
	delete(good, "dev.sigstore.cosign/rfc3161timestamp")
	if got, err := checkCosign2(t, img, payload, good, rule); err != nil || len(got.SignedBy) != 1 {
		t.Fatal(describe(got, err))
	}
	step := 7
	for at := 0; at < len(payload); at += step {
		changed := bytes.Clone(payload)
		changed[at] ^= 1
		if got, err := checkCosign2(t, img, changed, good, rule); len(got.SignedBy) > 0 {
			t.Errorf("payload, byte %d: %s", at, describe(got, err))
		}
	}
	for name, text := range good {
		for at := 0; at < len(text); at += step {
			annotations := map[string]string{}
			for k, v := range good {
				annotations[k] = v
			}
			changed := []byte(text)
			changed[at] ^= 1
			annotations[name] = string(changed)
			got, err := checkCosign2(t, img, payload, annotations, rule)
			if len(got.SignedBy) > 0 && !sameMeaning(name, text, string(changed)) {
				t.Errorf("%s, byte %d: %s", name, at, describe(got, err))
			}
		}
	}
}

// sameMeaning tells whether two annotations say the same: PEM's armour and line ends, and JSON's names of letters.
func sameMeaning(name, a, b string) bool {
	if strings.HasSuffix(name, "certificate") {
		x, _ := pem.Decode([]byte(a))
		y, _ := pem.Decode([]byte(b))
		return x != nil && y != nil && bytes.Equal(x.Bytes, y.Bytes)
	}
	var x, y struct {
		SignedEntryTimestamp []byte
		Payload              struct {
			Body, LogID              string
			IntegratedTime, LogIndex int64
		}
	}
	return json.Unmarshal([]byte(a), &x) == nil && json.Unmarshal([]byte(b), &y) == nil && bytes.Equal(x.SignedEntryTimestamp, y.SignedEntryTimestamp) && x.Payload == y.Payload
}

func FuzzCertified(f *testing.F) {
	f.Add("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", `{"SignedEntryTimestamp":"AAAA","Payload":{"body":"e30=","integratedTime":1,"logIndex":2,"logID":"00"}}`, `{"SignedRFC3161Timestamp":"AAAA"}`)
	f.Add("", "", "")
	f.Fuzz(func(t *testing.T, certificate, rekor, stamp string) {
		got, err := image.Certified(map[string]string{"dev.sigstore.cosign/certificate": certificate, "dev.sigstore.cosign/bundle": rekor,
			"dev.sigstore.cosign/rfc3161timestamp": stamp}, []byte("{}"), []byte("x"))
		if got && (err != nil || certificate == "") {
			t.Errorf("%t, %v", got, err)
		}
	})
}
