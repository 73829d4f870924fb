package image

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

// maxDepth bounds nesting of foreign JSON.
const maxDepth = 32

// decodeStrict decodes one JSON document into v. Two readers of one document must not see two things, so it refuses
// what encoding/json forgives: a key given twice, two keys that differ only in case (encoding/json matches struct
// fields without regard to case), data after the end, and deep nesting. In free maps (annotations and a payload's
// "optional") keys that differ in case are two keys, as encoding/json has them. It returns the folded top-level keys.
func decodeStrict(raw []byte, v any) (map[string]bool, error) {
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber()
	keys, err := scanValue(dec, maxDepth, fold)
	if err != nil {
		return nil, err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("data after the end of the JSON document")
	}
	return keys, json.Unmarshal(raw, v)
}

// fold maps keys that encoding/json takes for the same to the same text. ToUpper first: it also maps the two
// non-ASCII letters (long s, Kelvin sign) whose simple folding is ASCII.
func fold(key string) string { return strings.ToLower(strings.ToUpper(key)) }

// freeMaps are the keys, folded, of objects that are decoded into maps.
var freeMaps = []string{"annotations", "optional"}

// exactly maps each key to itself.
func exactly(key string) string { return key }

// scanValue reads one value and returns its folded keys if it is an object.
func scanValue(dec *json.Decoder, depth int, same func(string) string) (map[string]bool, error) {
	if depth == 0 {
		return nil, fmt.Errorf("JSON nested deeper than %d", maxDepth)
	}
	token, err := dec.Token()
	if err != nil {
		return nil, err
	}
	switch token {
	case json.Delim('{'):
		return scanObject(dec, depth, same)
	case json.Delim('['):
		return nil, scanArray(dec, depth)
	}
	return nil, nil
}

func scanObject(dec *json.Decoder, depth int, same func(string) string) (map[string]bool, error) {
	keys := map[string]bool{}
	for dec.More() {
		token, err := dec.Token()
		if err != nil {
			return nil, err
		}
		key, ok := token.(string)
		if !ok {
			return nil, fmt.Errorf("object key %v is not text", token)
		}
		if keys[same(key)] {
			return nil, fmt.Errorf("key %s is given twice", short(key))
		}
		keys[same(key)] = true
		below := fold
		if slices.Contains(freeMaps, fold(key)) {
			below = exactly
		}
		if _, err := scanValue(dec, depth-1, below); err != nil {
			return nil, err
		}
	}
	_, err := dec.Token()
	return keys, err
}

func scanArray(dec *json.Decoder, depth int) error {
	for dec.More() {
		if _, err := scanValue(dec, depth-1, fold); err != nil {
			return err
		}
	}
	_, err := dec.Token()
	return err
}

// short quotes foreign text for an error, cut so that a peer cannot flood a log.
func short(s string) string {
	const limit = 120
	if len(s) > limit {
		return fmt.Sprintf("%q…", s[:limit])
	}
	return fmt.Sprintf("%q", s)
}
