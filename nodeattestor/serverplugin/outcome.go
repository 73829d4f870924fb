package serverplugin

import (
	"errors"
	"fmt"
	"strings"

	"google.golang.org/grpc/codes"

	"github.com/keelson-project/keelson/nodeattestor/admission"
	"github.com/keelson-project/keelson/nodeattestor/audit"
	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
	"github.com/keelson-project/keelson/nodeattestor/trustclock"
)

// end is how an attestation ended that let nobody in.
type end struct {
	outcome  audit.Outcome
	code     codes.Code
	refusals nodeclaim.Refusals // none when the evidence was not judged
	err      error
}

// judge tells what an error says about the machine. proved is whether the evidence was proved to be the
// machine's own before: only then can it lower the verdict.
func judge(err error, proved bool, now trustclock.Reading) end {
	refusals := nodeclaim.AsRefusals(err)
	excuse := trustclock.Excuse(refusals, now)
	switch {
	case excuse != nil:
		err = fmt.Errorf("%w: %s", excuse, err.Error()) // err is not wrapped: it is no refusal any more
		return end{audit.Inconclusive, codes.Unavailable, nil, err}
	case len(refusals) > 0 && proved:
		return end{audit.Untrusted, codes.PermissionDenied, refusals, err}
	case len(refusals) > 0:
		return end{audit.Unproved, codes.PermissionDenied, refusals, err}
	case errors.As(err, new(malformed)) && !proved:
		return end{audit.Unproved, codes.InvalidArgument, nil, err}
	}
	return end{audit.Inconclusive, codes.Unavailable, nil, err}
}

// told is what the agent may know of an error that is no refusal: what is wrong with its own message,
// and that it should try again; not which addresses and files the server has.
func told(err error) error {
	for _, plain := range []error{admission.ErrFull, admission.ErrNewer, admission.ErrClaimed} {
		if errors.Is(err, plain) {
			return plain
		}
	}
	if errors.As(err, new(malformed)) {
		return err
	}
	return errors.New("the attestation could not be finished, try again; the server's audit log has the reason")
}

func checks(refusals nodeclaim.Refusals) string {
	names := make([]string, len(refusals))
	for i, r := range refusals {
		names[i] = r.Check
	}
	return strings.Join(names, ", ")
}

// malformed marks a message that could not be read.
type malformed struct{ error }

func (m malformed) Unwrap() error { return m.error }
