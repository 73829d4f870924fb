package v1alpha1

import (
	"strings"

	"sigs.k8s.io/json"
)

// maxUnknown is how many unknown fields of one policy are kept by name.
const maxUnknown = 16

// UnmarshalJSON reads a spec and keeps the paths of fields that it does not know in Unknown. Without it an unknown requirement
// would be lost between the API server and the judgement, and the policy would be a weaker one than its author wrote.
func (s *TrustPolicySpec) UnmarshalJSON(data []byte) error {
	type plain TrustPolicySpec // without this method
	var read plain
	strict, err := json.UnmarshalStrict(data, &read)
	if err != nil {
		return err
	}
	*s = TrustPolicySpec(read)
	s.Unknown = nil
	for _, e := range strict {
		path, found := strings.CutPrefix(e.Error(), `unknown field "`)
		if found && len(s.Unknown) < maxUnknown {
			s.Unknown = append(s.Unknown, strings.TrimSuffix(path, `"`))
		}
	}
	return nil
}
