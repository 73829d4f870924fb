package istio

import (
	"encoding/json"
)

// Split takes an element of spec.rules whose one source is a plain set of principals or of address blocks apart: into what
// remains, the set's members, and a way to make the element of other members. A rule means the same as rules for each of the
// members alone, so a plan may add and take away single ones. ok is false for any other element.
func Split(element any) (rest string, members []string, join func([]string) any, ok bool) {
	rule, source, key := plainSource(element)
	if key == "" {
		return "", nil, nil, false
	}
	list, _ := source[key].([]any)
	for _, v := range list {
		text, isText := v.(string)
		if !isText {
			return "", nil, nil, false
		}
		members = append(members, text)
	}
	others := map[string]any{"key": key}
	for k, v := range rule {
		if k != "from" {
			others[k] = v
		}
	}
	data, err := json.Marshal(others)
	if err != nil || len(members) == 0 {
		return "", nil, nil, false
	}
	return string(data), members, func(with []string) any {
		values := make([]any, 0, len(with))
		for _, v := range with {
			values = append(values, v)
		}
		out := map[string]any{"from": []any{map[string]any{"source": map[string]any{key: values}}}}
		for k, v := range rule {
			if k != "from" {
				out[k] = v
			}
		}
		return out
	}, true
}

// plainSource returns a rule, its one source, and the one field of that; no key if it has more.
func plainSource(element any) (rule, source map[string]any, key string) {
	rule, _ = element.(map[string]any)
	from, _ := rule["from"].([]any)
	if len(from) != 1 {
		return nil, nil, ""
	}
	entry, _ := from[0].(map[string]any)
	source, _ = entry["source"].(map[string]any)
	if len(entry) != 1 || len(source) != 1 {
		return nil, nil, ""
	}
	for _, k := range []string{"principals", "ipBlocks"} {
		if _, has := source[k]; has {
			return rule, source, k
		}
	}
	return nil, nil, ""
}
