package image_test

import (
	"strings"
	"testing"

	"github.com/keelson-project/keelson/workloadattestor/image"
)

// cosign2 is the image that cosign 2.6.5 signed in one of its forms: "tag", "oci-1-1" or "bundle".
func cosign2(t *testing.T, form string, api bool) (f files, subject string) {
	t.Helper()
	img := read(t, "cosign-3.1.3", "image-manifest.json")
	subject = digestOf(img)
	tag := strings.Replace(subject, ":", "-", 1)
	manifest, layer := read(t, "cosign-2.6.5", form+"-manifest.json"), "bundle.json"
	if form != "bundle" {
		layer = form + "-payload.json"
	}
	content := read(t, "cosign-2.6.5", layer)
	f = files{"manifests/" + subject: img, "blobs/" + digestOf(content): content}
	if form == "tag" {
		f["manifests/"+tag+".sig"] = manifest
		return f, subject
	}
	f["manifests/"+digestOf(manifest)] = manifest
	list := read(t, "cosign-2.6.5", form+"-referrers.json")
	if api {
		f["referrers/"+subject] = list
	} else {
		f["manifests/"+tag] = list
	}
	return f, subject
}

func TestEachFormOfCosign2IsASignature(t *testing.T) {
	v := keyVerifier(t, read(t, "cosign-2.6.5", "cosign.pub"))
	stranger := keyVerifier(t, read(t, "cosign-3.1.3", "cosign.pub"))
	for form, format := range map[string]string{"tag": image.FormatSimpleSigning, "oci-1-1": image.FormatSimpleSigning, "bundle": image.FormatBundle} {
		for api, where := range map[bool]string{true: "with the referrers API", false: "without"} {
			t.Run(form+", "+where, func(t *testing.T) {
				f, subject := cosign2(t, form, api)
				host := f.serve(t)
				running := image.Running{Ref: host + "/app@" + subject}
				got, err := checkerOf(t, host, v).Check(t.Context(), running)
				if err != nil || len(got.Signatures) != 1 || got.Signatures[0].Format != format {
					t.Errorf("got %s, %+v", describe(got, err), got.Signatures)
				}
				if got, err := checkerOf(t, host, stranger).Check(t.Context(), running); err != nil || len(got.SignedBy) > 0 {
					t.Errorf("by another key: %s", describe(got, err))
				}
			})
		}
	}
}

// TestAnyByteOfCosign2sDocumentsCounts flips a bit of each byte of what was signed, which a registry
// then serves under the digest that the changed bytes have, with manifests to match.
func TestAnyByteOfCosign2sDocumentsCounts(t *testing.T) {
	v := keyVerifier(t, read(t, "cosign-2.6.5", "cosign.pub"))
	for _, form := range []string{"tag", "oci-1-1"} {
		f, subject := cosign2(t, form, true)
		payload := read(t, "cosign-2.6.5", form+"-payload.json")
		manifest := string(read(t, "cosign-2.6.5", form+"-manifest.json"))
		for i := range payload {
			changed := append([]byte{}, payload...)
			changed[i] ^= 1
			with := files{"manifests/" + subject: f["manifests/"+subject], "blobs/" + digestOf(changed): changed}
			text := []byte(strings.ReplaceAll(manifest, digestOf(payload), digestOf(changed)))
			if form == "tag" {
				with["manifests/"+strings.Replace(subject, ":", "-", 1)+".sig"] = text
			} else {
				with["manifests/"+digestOf(text)] = text
				with["referrers/"+subject] = []byte(strings.ReplaceAll(string(f["referrers/"+subject]), digestOf([]byte(manifest)), digestOf(text)))
			}
			host := with.serve(t)
			got, err := checkerOf(t, host, v).Check(t.Context(), image.Running{Ref: host + "/app@" + subject})
			if err == nil && len(got.SignedBy) > 0 {
				t.Fatalf("%s: byte %d was changed: %s", form, i, describe(got, err))
			}
		}
	}
}
