package ek

import (
	"bytes"
	"crypto/x509"
	"encoding/asn1"
	"slices"
)

// ParseCertificate is [x509.ParseCertificate], except that the serial number may have superfluous zeros in front. Nuvoton's TPMs
// have such EK certificates; DER forbids the zeros (X.690, section 8.3.2), and Go refuses them. Such a certificate is read as if its
// serial number had none, which is the same number, and its signature is verified over the bytes that were signed
// (RawTBSCertificate). Nothing else of it may deviate.
func ParseCertificate(der []byte) (*x509.Certificate, error) {
	c, err := x509.ParseCertificate(der)
	if err == nil {
		return c, nil
	}
	tbs, plain, ok := withoutZeros(der)
	if !ok {
		return nil, err
	}
	c, again := x509.ParseCertificate(plain)
	if again != nil {
		return nil, again
	}
	c.Raw, c.RawTBSCertificate = bytes.Clone(der), bytes.Clone(tbs)
	return c, nil
}

// withoutZeros writes a certificate anew whose serial number has superfluous zeros in front; false for any other. tbs is what was
// signed.
func withoutZeros(der []byte) (tbs, plain []byte, ok bool) {
	cert, rest, ok := element(der, asn1.TagSequence)
	if !ok || len(rest) > 0 {
		return nil, nil, false
	}
	signed, signature, ok := element(cert.Bytes, asn1.TagSequence)
	if !ok {
		return nil, nil, false
	}
	var version asn1.RawValue
	after, err := asn1.Unmarshal(signed.Bytes, &version)
	if err != nil || version.Class != asn1.ClassContextSpecific || version.Tag != 0 {
		version, after = asn1.RawValue{}, signed.Bytes
	}
	serial, after, ok := element(after, asn1.TagInteger)
	if !ok {
		return nil, nil, false
	}
	number := serial.Bytes
	for len(number) > 1 && number[0] == 0 && number[1] < 0x80 {
		number = number[1:]
	}
	if len(number) == len(serial.Bytes) {
		return nil, nil, false
	}
	again, err := asn1.Marshal(asn1.RawValue{Tag: asn1.TagInteger, Bytes: number})
	if err != nil {
		return nil, nil, false
	}
	body, err := asn1.Marshal(asn1.RawValue{Tag: asn1.TagSequence, IsCompound: true, Bytes: slices.Concat(version.FullBytes, again, after)})
	if err != nil {
		return nil, nil, false
	}
	plain, err = asn1.Marshal(asn1.RawValue{Tag: asn1.TagSequence, IsCompound: true, Bytes: slices.Concat(body, signature)})
	return signed.FullBytes, plain, err == nil
}

// element takes the first element off, which must be of a universal type.
func element(der []byte, tag int) (v asn1.RawValue, rest []byte, ok bool) {
	rest, err := asn1.Unmarshal(der, &v)
	return v, rest, err == nil && v.Class == asn1.ClassUniversal && v.Tag == tag && v.IsCompound == (tag == asn1.TagSequence)
}
