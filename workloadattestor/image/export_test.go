package image

import "time"

// ParseProviderResponse reads a credential provider's answer, as version v1.
func ParseProviderResponse(raw []byte) (keep time.Duration, entries int, err error) {
	p := &provider{apiVersion: providerVersions[0]}
	_, keep, list, err := p.parse(raw)
	return keep, len(list), err
}

// Certified makes a bundle of annotations, and tells whether there is one.
func Certified(annotations map[string]string, payload, signature []byte) (bool, error) {
	b, err := certified(descriptor{Annotations: annotations}, payload, signature)
	return b != nil, err
}
