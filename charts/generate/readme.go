package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"go.yaml.in/yaml/v3"
)

// The table of values stands between these lines of the README.
const (
	tableBegins = "<!-- values: generated from values.yaml and values.schema.json -->\n"
	tableEnds   = "<!-- end of values -->\n"
)

// property is what this program reads of a JSON schema.
type property struct {
	Description string              `json:"description"`
	Properties  map[string]property `json:"properties"`
}

// readme is the chart's README with the table of values as it should be.
func readme(chart fs.FS) ([]byte, error) {
	text, err := fs.ReadFile(chart, "README.md")
	if err != nil {
		return nil, err
	}
	before, rest, begins := bytes.Cut(text, []byte(tableBegins))
	_, after, ends := bytes.Cut(rest, []byte(tableEnds))
	if !begins || !ends {
		return nil, errors.New("it has no place for the table of values")
	}
	table, err := values(chart)
	return bytes.Join([][]byte{before, []byte(tableBegins), table, []byte(tableEnds), after}, nil), err
}

// values is the table: every value in the order of values.yaml, with its default and the schema's sentence.
func values(chart fs.FS) ([]byte, error) {
	var schema property
	var defaults yaml.Node
	for name, read := range map[string]func([]byte) error{
		"values.schema.json": func(b []byte) error { return json.Unmarshal(b, &schema) },
		"values.yaml":        func(b []byte) error { return yaml.Unmarshal(b, &defaults) },
	} {
		content, err := fs.ReadFile(chart, name)
		if err != nil {
			return nil, err
		}
		if err := read(content); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
	}
	var out bytes.Buffer
	out.WriteString("| value | default | meaning |\n| --- | --- | --- |\n")
	err := rows(&out, "", schema, defaults.Content[0])
	return out.Bytes(), err
}

func rows(out *bytes.Buffer, path string, schema property, defaults *yaml.Node) error {
	if len(defaults.Content) != 2*len(schema.Properties) {
		return fmt.Errorf("values.yaml has %d values under %q, values.schema.json %d", len(defaults.Content)/2, path, len(schema.Properties))
	}
	for i := 0; i+1 < len(defaults.Content); i += 2 {
		name := path + defaults.Content[i].Value
		p, known := schema.Properties[defaults.Content[i].Value]
		if !known || p.Description == "" {
			return fmt.Errorf("values.schema.json has no sentence about %s", name)
		}
		if len(p.Properties) > 0 {
			if err := rows(out, name+".", p, defaults.Content[i+1]); err != nil {
				return err
			}
			continue
		}
		value, err := inline(defaults.Content[i+1])
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		fmt.Fprintf(out, "| `%s` | %s | %s |\n", name, value, strings.ReplaceAll(p.Description, "|", `\|`))
	}
	return nil
}

// inline is a value on one line; nothing for one that is empty.
func inline(n *yaml.Node) (string, error) {
	var value any
	if err := n.Decode(&value); err != nil {
		return "", err
	}
	var out bytes.Buffer
	encoder := json.NewEncoder(&out)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(value); err != nil {
		return "", err
	}
	text := strings.TrimSpace(out.String())
	if text == `""` || text == "[]" || text == "{}" {
		return "", nil
	}
	if s, ok := value.(string); ok {
		text = s
	}
	return "`" + text + "`", nil
}
