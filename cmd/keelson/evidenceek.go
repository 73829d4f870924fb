package main

import (
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/keelson-project/keelson/boundedfile"
	"github.com/keelson-project/keelson/nodeattestor/ek"
	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
)

// maxPEM bounds a certificate file in bytes.
const maxPEM = 1 << 20

// verifyEKs verifies every EK certificate of an evidence folder under the makers' certificates
// of another. A certificate that does not verify is a refusal; a file that cannot be read is an error.
func verifyEKs(dir, roots string, now time.Time) (nodeclaim.Refusals, error) {
	anchors, err := readAnchors(roots)
	if err != nil {
		return nil, err
	}
	files, err := filepath.Glob(filepath.Join(dir, ekPattern))
	if err != nil {
		return nil, err
	}
	if len(files) == 0 {
		return nodeclaim.Refusals{*nodeclaim.Refuse("ek.missing", "there is no EK certificate ("+ekPattern+") to verify under --ek-roots")}, nil
	}
	slices.Sort(files)
	var refusals nodeclaim.Refusals
	for _, name := range files {
		data, err := boundedfile.Read(name, maxPEM)
		if err != nil {
			return nil, err
		}
		_, err = ek.Verify(certificates(data), nil, anchors, now)
		if err == nil {
			continue
		}
		why := nodeclaim.AsRefusals(err)
		if len(why) == 0 {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		for _, r := range why {
			refusals = append(refusals, *nodeclaim.Refuse(r.Check, filepath.Base(name)+": "+r.Reason))
		}
	}
	return refusals, nil
}

// certificates are the DER contents of PEM CERTIFICATE blocks, unparsed: package ek judges them.
func certificates(data []byte) [][]byte {
	var out [][]byte
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		if block.Type == "CERTIFICATE" {
			out = append(out, block.Bytes)
		}
	}
	return out
}

// readAnchors reads a folder of PEM files: self-signed certificates are roots, others help to
// build chains.
func readAnchors(dir string) (ek.Anchors, error) {
	anchors := ek.Anchors{Mode: ek.Certificate}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return anchors, err
	}
	var errs []error
	for _, e := range entries {
		if e.IsDir() {
			continue
		}
		name := filepath.Join(dir, e.Name())
		data, err := boundedfile.Read(name, maxPEM)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		certs, err := ek.ParseCertificates(data)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", name, err))
			continue
		}
		for _, c := range certs {
			if c.CheckSignatureFrom(c) == nil {
				anchors.Roots = append(anchors.Roots, c)
			} else {
				anchors.Intermediates = append(anchors.Intermediates, c)
			}
		}
	}
	if len(errs) == 0 && len(anchors.Roots) == 0 {
		errs = append(errs, fmt.Errorf("--ek-roots %s has no self-signed certificate, so nothing is trusted", dir))
	}
	return anchors, errors.Join(errs...)
}
