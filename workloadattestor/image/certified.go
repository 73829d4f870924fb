package image

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"strconv"

	protobundle "github.com/sigstore/protobuf-specs/gen/pb-go/bundle/v1"
	protocommon "github.com/sigstore/protobuf-specs/gen/pb-go/common/v1"
	protorekor "github.com/sigstore/protobuf-specs/gen/pb-go/rekor/v1"
	"github.com/sigstore/sigstore-go/pkg/bundle"
)

// Annotations in which cosign up to version 2 keeps what belongs to a signature by a short-lived certificate (sigstore/cosign
// specs/SIGNATURE_SPEC.md).
const (
	certificateAnnotation = "dev.sigstore.cosign/certificate"
	rekorAnnotation       = "dev.sigstore.cosign/bundle"
	timestampAnnotation   = "dev.sigstore.cosign/rfc3161timestamp"

	maxAnnotation = 64 << 10
)

// certified makes a bundle of a payload's signature and its layer's annotations, nil where they have no certificate. The bundle says
// what the annotations say, unverified: sigstore-go checks that the log's entry is about this signature, certificate and payload.
// Of the certificate's chain nothing is taken: the intermediates that count are the trusted root's.
func certified(layer descriptor, payload, signature []byte) (*bundle.Bundle, error) {
	certificate := layer.Annotations[certificateAnnotation]
	if certificate == "" {
		return nil, nil
	}
	for _, name := range []string{certificateAnnotation, rekorAnnotation, timestampAnnotation} {
		if n := len(layer.Annotations[name]); n > maxAnnotation {
			return nil, fmt.Errorf("annotation %s has %d characters, the limit is %d", name, n, maxAnnotation)
		}
	}
	block, _ := pem.Decode([]byte(certificate))
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, fmt.Errorf("annotation %s has no PEM block \"CERTIFICATE\"", certificateAnnotation)
	}
	sum := sha256.Sum256(payload)
	material := &protobundle.VerificationMaterial{
		Content: &protobundle.VerificationMaterial_Certificate{Certificate: &protocommon.X509Certificate{RawBytes: block.Bytes}},
	}
	if text := layer.Annotations[rekorAnnotation]; text != "" {
		entry, err := rekorEntry(text)
		if err != nil {
			return nil, fmt.Errorf("annotation %s: %w", rekorAnnotation, err)
		}
		material.TlogEntries = []*protorekor.TransparencyLogEntry{entry}
	}
	if text := layer.Annotations[timestampAnnotation]; text != "" {
		var stamp struct{ SignedRFC3161Timestamp []byte }
		if _, err := decodeStrict([]byte(text), &stamp); err != nil {
			return nil, fmt.Errorf("annotation %s: %w", timestampAnnotation, err)
		}
		material.TimestampVerificationData = &protobundle.TimestampVerificationData{
			Rfc3161Timestamps: []*protocommon.RFC3161SignedTimestamp{{SignedTimestamp: stamp.SignedRFC3161Timestamp}}}
	}
	// Version 0.1 is the one whose entries need the log's promise alone, which is what cosign 2 keeps.
	return bundle.NewBundle(&protobundle.Bundle{
		MediaType:            bundleMediaType + "+json;version=0.1",
		VerificationMaterial: material,
		Content: &protobundle.Bundle_MessageSignature{MessageSignature: &protocommon.MessageSignature{
			MessageDigest: &protocommon.HashOutput{Algorithm: protocommon.HashAlgorithm_SHA2_256, Digest: sum[:]}, Signature: signature}},
	})
}

// rekorEntry reads the entry of a transparency log, with the log's promise (sigstore/cosign pkg/cosign/bundle, RekorBundle).
func rekorEntry(text string) (*protorekor.TransparencyLogEntry, error) {
	var got struct {
		SignedEntryTimestamp []byte
		Payload              struct {
			Body           string      `json:"body"`
			IntegratedTime json.Number `json:"integratedTime"`
			LogIndex       json.Number `json:"logIndex"`
			LogID          string      `json:"logID"`
		}
	}
	if _, err := decodeStrict([]byte(text), &got); err != nil {
		return nil, err
	}
	body, err1 := base64.StdEncoding.Strict().DecodeString(got.Payload.Body)
	logID, err2 := hex.DecodeString(got.Payload.LogID)
	at, err3 := strconv.ParseInt(got.Payload.IntegratedTime.String(), 10, 64)
	index, err4 := strconv.ParseInt(got.Payload.LogIndex.String(), 10, 64)
	if err := errors.Join(err1, err2, err3, err4); err != nil || len(got.SignedEntryTimestamp) == 0 {
		return nil, errors.New(`want {"SignedEntryTimestamp": …, "Payload": {"body": …, "integratedTime": …, "logIndex": …, "logID": …}}`)
	}
	var kind struct {
		APIVersion string `json:"apiVersion"`
		Kind       string `json:"kind"`
	}
	if _, err := decodeStrict(body, &kind); err != nil {
		return nil, fmt.Errorf("body: %w", err)
	}
	return &protorekor.TransparencyLogEntry{
		LogIndex: index, LogId: &protocommon.LogId{KeyId: logID}, IntegratedTime: at, CanonicalizedBody: body,
		KindVersion:      &protorekor.KindVersion{Kind: kind.Kind, Version: kind.APIVersion},
		InclusionPromise: &protorekor.InclusionPromise{SignedEntryTimestamp: got.SignedEntryTimestamp},
	}, nil
}
