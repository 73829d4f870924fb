package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io/fs"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	sigsyaml "sigs.k8s.io/yaml"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
)

const trustPolicies = "crds/trust.keelson.io_trustpolicies.yaml"

// trustPolicySchema adds to the definition of TrustPolicy what no marker on a Go type can say: bounds and patterns within label
// selectors, whose type is Kubernetes' own, and within maps of lists; and that the API keeps fields that it does not know, so that
// they can be refused by name instead of being lost. Doing it twice changes nothing.
func trustPolicySchema(chart fs.FS) ([]byte, error) {
	document, err := fs.ReadFile(chart, trustPolicies)
	if err != nil {
		return nil, err
	}
	var definition map[string]any
	if err := sigsyaml.Unmarshal(document, &definition); err != nil {
		return nil, err
	}
	spec, _ := definition["spec"].(map[string]any)
	versions, _ := spec["versions"].([]any)
	for _, v := range versions {
		version, _ := v.(map[string]any)
		validation, _ := version["schema"].(map[string]any)
		var root apiextensionsv1.JSONSchemaProps
		if err := convert(validation["openAPIV3Schema"], &root); err != nil {
			return nil, err
		}
		of, ok := root.Properties["spec"]
		if !ok {
			return nil, fmt.Errorf("%s: a version has no spec", trustPolicies)
		}
		tighten(&of)
		root.Properties["spec"] = of
		loosenStatus(&root)
		var back map[string]any
		if err := convert(root, &back); err != nil {
			return nil, err
		}
		validation["openAPIV3Schema"] = back
	}
	out, err := sigsyaml.Marshal(definition)
	return append([]byte("---\n"), bytes.TrimPrefix(out, []byte("---\n"))...), err
}

func convert(from, to any) error {
	text, err := json.Marshal(from)
	if err != nil {
		return err
	}
	return json.Unmarshal(text, to)
}

// tighten walks a schema.
func tighten(s *apiextensionsv1.JSONSchemaProps) {
	if len(s.Properties) > 0 {
		s.XPreserveUnknownFields = ptr(true)
	}
	_, labels := s.Properties["matchLabels"]
	_, expressions := s.Properties["matchExpressions"]
	if labels && expressions {
		labelSelector(s)
		return
	}
	for name, p := range s.Properties {
		if name == "tags" {
			tags(&p)
		}
		tighten(&p)
		s.Properties[name] = p
	}
	if s.Items != nil && s.Items.Schema != nil {
		tighten(s.Items.Schema)
	}
}

// Patterns of label keys and values (k8s.io/apimachinery/pkg/util/validation, IsQualifiedName and IsValidLabelValue).
const (
	labelValue = `^(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?$`
	labelKey   = `^([a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?([A-Za-z0-9][-A-Za-z0-9_.]{0,61})?[A-Za-z0-9]$`
	tagValue   = `^([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]$`
	tagKey     = `^[-A-Za-z0-9_.]{0,58}[A-Za-z0-9]$`
	maxLabel   = 63
)

// labelSelector bounds a metav1.LabelSelector and says in which form its keys, operators and values are.
func labelSelector(s *apiextensionsv1.JSONSchemaProps) {
	labels := s.Properties["matchLabels"]
	labels.MaxProperties = ptr(int64(v1alpha1.MaxMatchLabels))
	labels.AdditionalProperties.Schema.Pattern, labels.AdditionalProperties.Schema.MaxLength = labelValue, ptr(int64(maxLabel))
	labels.XValidations = apiextensionsv1.ValidationRules{{
		Rule:    fmt.Sprintf("self.all(k, size(k) <= %d && k.matches('%s'))", v1alpha1.MaxName, labelKey),
		Message: "a label's key is a name of at most 63 letters, digits, '-', '_' and '.', after a DNS name and / if it has a prefix",
	}}
	s.Properties["matchLabels"] = labels

	expressions := s.Properties["matchExpressions"]
	expressions.MaxItems = ptr(int64(v1alpha1.MaxMatchExpressions))
	one := expressions.Items.Schema
	one.XPreserveUnknownFields = ptr(true)
	key, operator, values := one.Properties["key"], one.Properties["operator"], one.Properties["values"]
	key.Pattern, key.MaxLength = labelKey, ptr(int64(v1alpha1.MaxName))
	operator.Enum = []apiextensionsv1.JSON{{Raw: []byte(`"In"`)}, {Raw: []byte(`"NotIn"`)}, {Raw: []byte(`"Exists"`)}, {Raw: []byte(`"DoesNotExist"`)}}
	operator.MaxLength = ptr(int64(len("DoesNotExist")))
	values.MaxItems = ptr(int64(v1alpha1.MaxMatchValues))
	values.Items.Schema.Pattern, values.Items.Schema.MaxLength = labelValue, ptr(int64(maxLabel))
	one.Properties["key"], one.Properties["operator"], one.Properties["values"] = key, operator, values
	one.XValidations = apiextensionsv1.ValidationRules{{
		Rule:    "self.operator in ['In', 'NotIn'] ? has(self.values) && size(self.values) > 0 : !has(self.values) || size(self.values) == 0",
		Message: "In and NotIn need values; Exists and DoesNotExist have none",
	}}
	s.Properties["matchExpressions"] = expressions
}

// tags bounds a map from asset-tag keys to accepted values: both become parts of labels.
func tags(s *apiextensionsv1.JSONSchemaProps) {
	values := s.AdditionalProperties.Schema
	values.MaxItems = ptr(int64(v1alpha1.MaxTagValues))
	values.Items.Schema.Pattern, values.Items.Schema.MaxLength = tagValue, ptr(int64(maxLabel))
	s.XValidations = apiextensionsv1.ValidationRules{{
		Rule:    fmt.Sprintf("self.all(k, k.matches('%s'))", tagKey),
		Message: "a tag's key has at most 59 letters, digits, '-', '_' and '.', and ends with a letter or digit",
	}, {
		Rule:    "self.all(k, size(self[k]) > 0)",
		Message: "a tag without values is met by no node: name at least one value for each key, or leave the key out",
	}}
}

// loosenStatus takes checks off the copies of a spec in the status: policy-sync writes there what the API has taken as a spec
// before, and each check would count again towards what the API server lets a definition cost.
func loosenStatus(root *apiextensionsv1.JSONSchemaProps) {
	status, ok := root.Properties["status"]
	if !ok {
		return
	}
	last, ok := status.Properties["lastAccepted"]
	if !ok {
		return
	}
	if spec, ok := last.Properties["spec"]; ok {
		last.Properties["spec"] = apiextensionsv1.JSONSchemaProps{Type: "object", Description: spec.Description, XPreserveUnknownFields: ptr(true)}
	}
}

func ptr[T any](v T) *T { return &v }
