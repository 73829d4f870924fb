package image_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	_ "crypto/sha1" // for a signature that has to be refused
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/sigstore/sigstore/pkg/signature"

	"github.com/keelson-project/keelson/workloadattestor/image"
	"github.com/keelson-project/keelson/workloadattestor/image/imagetest"
)

// files is a registry of one repository that is written by hand, path by path below /v2/app/.
type files map[string][]byte

func digestOf(content []byte) string {
	sum := sha256.Sum256(content)
	return "sha256:" + hex.EncodeToString(sum[:])
}

func (f files) serve(t *testing.T) string {
	t.Helper()
	server := httptest.NewServer(f.handler())
	t.Cleanup(server.Close)
	return strings.TrimPrefix(server.URL, "http://")
}

func (f files) handler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v2/" {
			return
		}
		content, ok := f[strings.TrimPrefix(r.URL.Path, "/v2/app/")]
		if !ok {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		var doc struct {
			MediaType string `json:"mediaType"`
		}
		_ = json.Unmarshal(content, &doc) // a blob has none
		w.Header().Set("Content-Type", doc.MediaType)
		_, _ = w.Write(content)
	})
}

func read(t *testing.T, path ...string) []byte {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(append([]string{"testdata"}, path...)...))
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// cosign3 is the image that cosign 3.1.3 signed, in a registry with or without the referrers API.
func cosign3(t *testing.T, api bool) (files, string) {
	t.Helper()
	img, bundleManifest, bundle := read(t, "cosign-3.1.3", "image-manifest.json"), read(t, "cosign-3.1.3", "bundle-manifest.json"), read(t, "cosign-3.1.3", "bundle.json")
	subject := digestOf(img)
	f := files{
		"manifests/" + subject:                  img,
		"manifests/" + digestOf(bundleManifest): bundleManifest,
		"blobs/" + digestOf(bundle):             bundle,
	}
	list := read(t, "cosign-3.1.3", "referrers.json")
	if api {
		f["referrers/"+subject] = list
	} else {
		f["manifests/"+strings.Replace(subject, ":", "-", 1)] = list
	}
	return f, subject
}

func checkerOf(t *testing.T, host string, verifiers ...image.Verifier) *image.Checker {
	t.Helper()
	c, err := image.New(image.Config{InsecureRegistries: []string{host}, Verifiers: verifiers, Now: time.Now,
		Platform: image.Platform{OS: "linux", Architecture: "amd64"}})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func keyVerifier(t *testing.T, pem []byte) image.Verifier {
	t.Helper()
	v, err := image.NewKeyVerifier("release-key", pem)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestBundleOfCosign3IsASignature(t *testing.T) {
	for name, api := range map[string]bool{"with the referrers API": true, "with the tag that stands in for it": false} {
		t.Run(name, func(t *testing.T) {
			f, subject := cosign3(t, api)
			host := f.serve(t)
			v := keyVerifier(t, read(t, "cosign-3.1.3", "cosign.pub"))
			got, err := checkerOf(t, host, v).Check(t.Context(), image.Running{Ref: host + "/app@" + subject})
			if err != nil || len(got.Signatures) != 1 || got.Signatures[0].Format != image.FormatBundle {
				t.Errorf("got %s, %+v", describe(got, err), got.Signatures)
			}
		})
	}
}

// envelope is a bundle over a statement, by a key.
func envelope(t *testing.T, key crypto.Signer, hash crypto.Hash, statement string) []byte {
	t.Helper()
	const payloadType = "application/vnd.in-toto+json"
	signer, err := signature.LoadSigner(key, hash)
	if err != nil {
		t.Fatal(err)
	}
	pae := fmt.Sprintf("DSSEv1 %d %s %d %s", len(payloadType), payloadType, len(statement), statement)
	sig, err := signer.SignMessage(strings.NewReader(pae))
	if err != nil {
		t.Fatal(err)
	}
	raw, err := json.Marshal(map[string]any{
		"mediaType":            "application/vnd.dev.sigstore.bundle.v0.3+json",
		"verificationMaterial": map[string]any{"publicKey": map[string]any{"hint": "x"}},
		"dsseEnvelope": map[string]any{"payload": base64.StdEncoding.EncodeToString([]byte(statement)), "payloadType": payloadType,
			"signatures": []any{map[string]any{"sig": base64.StdEncoding.EncodeToString(sig)}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func statement(digest, predicate string) string {
	return fmt.Sprintf(`{"_type":"https://in-toto.io/Statement/v1","subject":[{"name":"","digest":{"sha256":%q}}],"predicateType":%q,"predicate":{}}`,
		strings.TrimPrefix(digest, "sha256:"), predicate)
}

const signs = "https://sigstore.dev/cosign/sign/v1"

// refer adds a manifest that refers to the subject, with one layer, to a registry with the referrers API.
func (f files) refer(t *testing.T, subject, artifactType, mediaType string, annotations map[string]string, content ...[]byte) {
	t.Helper()
	var list struct {
		SchemaVersion int              `json:"schemaVersion"`
		MediaType     string           `json:"mediaType"`
		Manifests     []map[string]any `json:"manifests"`
	}
	list.SchemaVersion, list.MediaType = 2, string(types.OCIImageIndex)
	if have, ok := f["referrers/"+subject]; ok {
		if err := json.Unmarshal(have, &list); err != nil {
			t.Fatal(err)
		}
	}
	layers := []any{}
	for _, c := range content {
		f["blobs/"+digestOf(c)] = c
		layers = append(layers, map[string]any{"mediaType": mediaType, "digest": digestOf(c), "size": len(c), "annotations": annotations})
	}
	none := []byte("{}")
	raw, err := json.Marshal(map[string]any{"schemaVersion": 2, "mediaType": types.OCIManifestSchema1, "artifactType": artifactType,
		"config": map[string]any{"mediaType": "application/vnd.oci.empty.v1+json", "digest": digestOf(none), "size": 2},
		"layers": layers, "subject": map[string]any{"mediaType": types.OCIManifestSchema1, "digest": subject, "size": 1}})
	if err != nil {
		t.Fatal(err)
	}
	f["manifests/"+digestOf(raw)] = raw
	list.Manifests = append(list.Manifests, map[string]any{"mediaType": types.OCIManifestSchema1, "digest": digestOf(raw), "size": len(raw), "artifactType": artifactType})
	if f["referrers/"+subject], err = json.Marshal(list); err != nil {
		t.Fatal(err)
	}
}

const bundleType = "application/vnd.dev.sigstore.bundle.v0.3+json"

func TestBundlesThatAreNoSignatureOfTheImage(t *testing.T) {
	key, public, err := imagetest.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	stranger, _, err := imagetest.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	other := "sha256:" + strings.Repeat("0", 64)
	cases := map[string]struct {
		bundle func(t *testing.T, subject string) []byte
		want   string
	}{
		"of another image": {func(t *testing.T, _ string) []byte { return envelope(t, key, crypto.SHA256, statement(other, signs)) }, "for another image"},
		"by another key":   {func(t *testing.T, s string) []byte { return envelope(t, stranger, crypto.SHA256, statement(s, signs)) }, "is by its key"},
		"an attestation, not a signature": {func(t *testing.T, s string) []byte {
			return envelope(t, key, crypto.SHA256, statement(s, "https://slsa.dev/provenance/v1"))
		}, "predicate type"},
		"a statement without subject": {func(t *testing.T, _ string) []byte {
			return envelope(t, key, crypto.SHA256, `{"_type":"https://in-toto.io/Statement/v1","predicateType":"`+signs+`","predicate":{}}`)
		}, "0 subjects"},
		"a digest in upper case": {func(t *testing.T, s string) []byte {
			return envelope(t, key, crypto.SHA256, statement(strings.ToUpper(s[7:]), signs))
		}, "lower-case sha256"},
		"of a media type that no one knows": {func(t *testing.T, s string) []byte {
			return bytes.Replace(envelope(t, key, crypto.SHA256, statement(s, signs)), []byte("v0.3+json"), []byte("v9.9+json"), 1)
		}, "bundle"},
		"cut": {func(t *testing.T, s string) []byte { return envelope(t, key, crypto.SHA256, statement(s, signs))[:100] }, "bundle"},
		"with a key twice": {func(t *testing.T, s string) []byte {
			return append([]byte(`{"mediaType":"x",`), envelope(t, key, crypto.SHA256, statement(s, signs))[1:]...)
		}, "given twice"},
		"larger than is read": {func(*testing.T, string) []byte { return bytes.Repeat([]byte(" "), 300<<10) }, "the limit is"},
		"with the statement of another signature": {func(t *testing.T, s string) []byte {
			good := envelope(t, key, crypto.SHA256, statement(other, signs))
			return bytes.Replace(good, []byte(base64.StdEncoding.EncodeToString([]byte(statement(other, signs)))), []byte(base64.StdEncoding.EncodeToString([]byte(statement(s, signs)))), 1)
		}, "is by its key"},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			img := read(t, "cosign-3.1.3", "image-manifest.json")
			subject := digestOf(img)
			f := files{"manifests/" + subject: img}
			f.refer(t, subject, bundleType, bundleType, nil, tc.bundle(t, subject))
			host := f.serve(t)
			got := describe(checkerOf(t, host, keyVerifier(t, public)).Check(t.Context(), image.Running{Ref: host + "/app@" + subject}))
			if strings.Contains(got, "[release-key]") || !strings.Contains(got, tc.want) {
				t.Errorf("got %s\nwant a refusal with %q", got, tc.want)
			}
		})
	}
}

func TestEveryWayOfSigningThatFitsAKeyCounts(t *testing.T) {
	p256, p384, p521 := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)), must(ecdsa.GenerateKey(elliptic.P384(), rand.Reader)), must(ecdsa.GenerateKey(elliptic.P521(), rand.Reader))
	rsaKey := must(rsa.GenerateKey(rand.Reader, 2048))
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	cases := map[string]struct {
		key  crypto.Signer
		sign signature.Signer
		want bool
	}{
		"P-256 over SHA-256":       {p256, must(signature.LoadECDSASigner(p256, crypto.SHA256)), true},
		"P-384 over SHA-384":       {p384, must(signature.LoadECDSASigner(p384, crypto.SHA384)), true},
		"P-384 over SHA-256":       {p384, must(signature.LoadECDSASigner(p384, crypto.SHA256)), true},
		"P-521 over SHA-512":       {p521, must(signature.LoadECDSASigner(p521, crypto.SHA512)), true},
		"RSA PKCS #1 over SHA-512": {rsaKey, must(signature.LoadRSAPKCS1v15Signer(rsaKey, crypto.SHA512)), true},
		"RSA PSS over SHA-256":     {rsaKey, must(signature.LoadRSAPSSSigner(rsaKey, crypto.SHA256, nil)), true},
		"RSA PSS over SHA-384":     {rsaKey, must(signature.LoadRSAPSSSigner(rsaKey, crypto.SHA384, nil)), true},
		"Ed25519":                  {ed, must(signature.LoadED25519Signer(ed)), true},
		"Ed25519, pre-hashed":      {ed, must(signature.LoadED25519phSigner(ed)), true},
		"RSA PKCS #1 over SHA-1":   {rsaKey, sha1Signer{rsaKey}, false},
	}
	for title, tc := range cases {
		t.Run(title, func(t *testing.T) {
			f := newFixture(t)
			a := f.app()
			f.push(f.repo+":a", a.image)
			content := payload(t, a.manifest)
			sig, err := tc.sign.SignMessage(bytes.NewReader(content))
			if err != nil {
				t.Fatal(err)
			}
			if err := imagetest.Push(t.Context(), f.repo, a.manifest, []imagetest.Signed{{Payload: content, Signature: sig}}, name.Insecure); err != nil {
				t.Fatal(err)
			}
			got, err := f.checker(f.verifier("release-key", pemOf(t, tc.key.Public()))).Check(t.Context(), image.Running{ID: a.config, Name: f.repo + ":a"})
			if (len(got.SignedBy) == 1) != tc.want {
				t.Errorf("got %s", describe(got, err))
			}
		})
	}
}

// sha1Signer signs as no one should.
type sha1Signer struct{ key *rsa.PrivateKey }

func (s sha1Signer) PublicKey(...signature.PublicKeyOption) (crypto.PublicKey, error) {
	return s.key.Public(), nil
}

func (s sha1Signer) SignMessage(message io.Reader, _ ...signature.SignOption) ([]byte, error) {
	h := crypto.SHA1.New()
	if _, err := io.Copy(h, message); err != nil {
		return nil, err
	}
	return rsa.SignPKCS1v15(rand.Reader, s.key, crypto.SHA1, h.Sum(nil))
}

// simple is a simple-signing payload and what its layer has to say.
func simple(t *testing.T, key crypto.Signer, subject string) ([]byte, map[string]string) {
	t.Helper()
	s, err := imagetest.SignPayload(key, payload(t, subject))
	if err != nil {
		t.Fatal(err)
	}
	return s.Payload, map[string]string{imagetest.Annotation: base64.StdEncoding.EncodeToString(s.Signature)}
}

// crowd puts n referrers of another kind, which are not there to be read, in front of the others.
func (f files) crowd(t *testing.T, subject string, n int) {
	t.Helper()
	var other []string
	for i := range n {
		other = append(other, fmt.Sprintf(`{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:%064x","size":1,"artifactType":"application/vnd.cyclonedx+json"}`, i))
	}
	list := f["referrers/"+subject]
	f["referrers/"+subject] = bytes.Replace(list, []byte(`"manifests":[`), []byte(`"manifests":[`+strings.Join(other, ",")+","), 1)
	if bytes.Equal(list, f["referrers/"+subject]) {
		t.Fatal("no list of referrers")
	}
}

func TestOldSignaturesAsReferrersCount(t *testing.T) {
	key, public, err := imagetest.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	img := read(t, "cosign-3.1.3", "image-manifest.json")
	subject := digestOf(img)
	f := files{"manifests/" + subject: img}
	content, annotations := simple(t, key, subject)
	f.refer(t, subject, "application/vnd.dev.cosign.artifact.sig.v1+json", string(imagetest.MediaType), annotations, content)
	f.crowd(t, subject, 3000)
	host := f.serve(t)
	got, err := checkerOf(t, host, keyVerifier(t, public)).Check(t.Context(), image.Running{Ref: host + "/app@" + subject})
	if len(got.SignedBy) != 1 {
		t.Errorf("got %.2000s", describe(got, err))
	}
}

func TestSignaturesInAnotherRepositoryCount(t *testing.T) {
	f := newFixture(t)
	a := f.app()
	f.push(f.repo+":a", a.image)
	if err := imagetest.Sign(t.Context(), f.host+"/team/signatures", a.manifest, f.key, name.Insecure); err != nil {
		t.Fatal(err)
	}
	running := image.Running{ID: a.config, Name: f.repo + ":a"}
	f.wantRefusal(f.checker(f.releaseKey()), running, "no signature found")
	// The image's own host is not listed for signatures, its repository is enough.
	for given, repository := range map[string]string{"right": f.host + "/team/signatures", "wrong": f.host + "/team/others"} {
		c, err := image.New(image.Config{InsecureRegistries: []string{f.host}, SignatureRepositories: []string{repository},
			Verifiers: []image.Verifier{f.releaseKey()}, Now: f.clock})
		if err != nil {
			t.Fatal(err)
		}
		if got, err := c.Check(t.Context(), running); (len(got.SignedBy) == 1) != (given == "right") {
			t.Errorf("%s: %s", given, describe(got, err))
		}
	}
}

func TestLayoutsOfCosignSaveCount(t *testing.T) {
	f := newFixture(t)
	a := f.app()
	dir := filepath.Join(t.TempDir(), "saved")
	path, err := layout.Write(dir, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	signed, err := imagetest.SignPayload(f.key, payload(t, a.manifest))
	if err != nil {
		t.Fatal(err)
	}
	signatures, err := imagetest.Manifest(signed)
	if err != nil {
		t.Fatal(err)
	}
	if err := path.AppendImage(a.image, layout.WithAnnotations(map[string]string{"kind": "dev.cosignproject.cosign/image"})); err != nil {
		t.Fatal(err)
	}
	if err := path.AppendImage(signatures, layout.WithAnnotations(map[string]string{"kind": "dev.cosignproject.cosign/sigs"})); err != nil {
		t.Fatal(err)
	}
	f.layouts = []string{dir}
	f.want(f.checker(f.releaseKey()), image.Running{ID: a.config}, proved(a, []string{a.manifest}, "release-key"))
}

func TestManySignaturesAreReadUpToALimit(t *testing.T) {
	f := newFixture(t)
	a := f.app()
	f.push(f.repo+":a", a.image)
	stranger, _, err := imagetest.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	var list []imagetest.Signed
	for range 60 {
		s, err := imagetest.SignPayload(stranger, payload(t, a.manifest))
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, s)
	}
	good, err := imagetest.SignPayload(f.key, payload(t, a.manifest))
	if err != nil {
		t.Fatal(err)
	}
	if err := imagetest.Push(t.Context(), f.repo, a.manifest, append(list, good), name.Insecure); err != nil {
		t.Fatal(err)
	}
	f.want(f.checker(f.releaseKey()), image.Running{ID: a.config, Name: f.repo + ":a"}, proved(a, []string{a.manifest}, "release-key"))
}
