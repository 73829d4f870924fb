package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/keelson-project/keelson/nodeattestor/tpmdev"
)

// maxOwnerAuth bounds an authorisation value in bytes: a TPM takes no more than its largest digest.
const maxOwnerAuth = 64

// tpmFlags say which TPM to use.
type tpmFlags struct {
	tpm, ownerAuth string
}

// defaultTPM is the kernel's resource manager of the first TPM.
const defaultTPM = "/dev/tpmrm0"

func (f *tpmFlags) register(c *cobra.Command, path string) {
	c.Flags().StringVar(&f.tpm, "tpm", path, "TPM device, or Unix socket that takes raw TPM commands")
	c.Flags().StringVar(&f.ownerAuth, "owner-auth-file", "", "file with the owner's authorisation, when it is not empty")
}

func (f *tpmFlags) open(ctx context.Context) (*tpmdev.Device, error) {
	opts := tpmdev.Options{}
	if f.ownerAuth != "" {
		var err error
		if opts.OwnerAuth, err = readLimited(f.ownerAuth, maxOwnerAuth); err != nil {
			return nil, err
		}
	}
	return tpmdev.OpenContext(ctx, f.tpm, opts)
}
