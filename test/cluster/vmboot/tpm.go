package vmboot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/keelson-project/keelson/nodeattestor/tpmdev"
	"github.com/keelson-project/keelson/test/cluster"
	"github.com/keelson-project/keelson/test/cluster/node"
	"github.com/keelson-project/keelson/test/tpmtest"
)

// TPM is a machine's TPM, which outlives its boots.
type TPM struct {
	// EKHashes are those of all its endorsement keys.
	EKHashes []string
	dir      string
}

// MakeTPM does what factory and operator do before the first boot: the EKs get certificates of ca, and provision, where it is
// not nil, is given the device for what else has to be in the TPM, such as an asset tag. dir is the TPM's folder, short enough
// for a Unix socket in it.
func (k *Kit) MakeTPM(ctx context.Context, g *cluster.Group, log io.Writer, name, dir string, ca *tpmtest.CA, provision func(*tpmdev.Device, *TPM) error) (made *TPM, err error) {
	state := filepath.Join(dir, "state")
	if err := os.MkdirAll(state, 0o700); err != nil {
		return nil, fmt.Errorf("vmboot: TPM: %w", err)
	}
	// One bank, as machines are delivered today; with more, firmware hashes everything once more for each.
	if _, err := tool(ctx, dir, k.system["swtpm_setup"], "--tpm2", "--tpmstate", state, "--pcr-banks", "sha256", "--runas", fmt.Sprint(os.Getuid())); err != nil {
		return nil, err
	}
	running, err := node.StartTPM(ctx, g, log, name+"-factory", dir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, running.Close()) }()
	if err := tpmtest.Manufacture(ctx, running.Socket, ca); err != nil {
		return nil, err
	}
	endorsements, err := running.Device.Endorsements(ctx)
	if err != nil {
		return nil, err
	}
	made = &TPM{dir: dir}
	for _, e := range endorsements {
		made.EKHashes = append(made.EKHashes, e.Hash.String())
	}
	if provision != nil {
		err = provision(running.Device, made)
	}
	return made, err
}
