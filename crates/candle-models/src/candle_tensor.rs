//! A file's tensors as candle's.

use candle_core::quantized::{GgmlDType, QTensor, ggml_file};
use candle_core::{DType, Device, Tensor};
use half::{bf16, f16};
use model_format::{ModelFile, RawTensor, TensorType};

use crate::error::LoadError;

/// Refuses a file with tensors of a type that cannot be multiplied with.
pub(crate) fn refuse_unknown_types(file: &ModelFile) -> Result<(), LoadError> {
    for (name, entry) in file.tensors() {
        if candle_type(entry.dtype).is_none() {
            return Err(LoadError::Unsupported(format!(
                "tensor {name} is of type {}, which is not supported; \
                 take a file of F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K or Q6_K",
                entry.dtype
            )));
        }
    }
    Ok(())
}

/// Candle's name of a type; `None` for those that it does not know.
fn candle_type(dtype: TensorType) -> Option<GgmlDType> {
    Some(match dtype {
        TensorType::F32 => GgmlDType::F32,
        TensorType::F16 => GgmlDType::F16,
        TensorType::Bf16 => GgmlDType::BF16,
        TensorType::Q4_0 => GgmlDType::Q4_0,
        TensorType::Q4_1 => GgmlDType::Q4_1,
        TensorType::Q5_0 => GgmlDType::Q5_0,
        TensorType::Q5_1 => GgmlDType::Q5_1,
        TensorType::Q8_0 => GgmlDType::Q8_0,
        TensorType::Q2K => GgmlDType::Q2K,
        TensorType::Q3K => GgmlDType::Q3K,
        TensorType::Q4K => GgmlDType::Q4K,
        TensorType::Q5K => GgmlDType::Q5K,
        TensorType::Q6K => GgmlDType::Q6K,
        _ => return None,
    })
}

/// What candle makes of a file's tensor.
pub(crate) trait CandleTensor {
    /// All elements.
    fn to_f32(&self) -> candle_core::Result<Vec<f32>>;
    /// As candle's quantised tensor on `device`.
    fn to_qtensor(&self, device: &Device) -> candle_core::Result<QTensor>;
    /// As a plain tensor of the type that the file has, where that is not quantised.
    fn to_dense(&self, device: &Device) -> Option<candle_core::Result<Tensor>>;
}

impl CandleTensor for RawTensor<'_> {
    fn to_f32(&self) -> candle_core::Result<Vec<f32>> {
        match self.dtype {
            TensorType::F32 => Ok(each(self.data, f32::from_le_bytes)),
            TensorType::F16 => Ok(each(self.data, |bytes| f16::from_le_bytes(bytes).to_f32())),
            TensorType::Bf16 => Ok(each(self.data, |bytes| bf16::from_le_bytes(bytes).to_f32())),
            _ => self
                .to_qtensor(&Device::Cpu)?
                .dequantize(&Device::Cpu)?
                .flatten_all()?
                .to_vec1(),
        }
    }

    fn to_qtensor(&self, device: &Device) -> candle_core::Result<QTensor> {
        let unknown = || candle_core::Error::Msg(format!("tensor {} is of type {}", self.name, self.dtype));
        let dtype = candle_type(self.dtype).ok_or_else(unknown)?;
        ggml_file::qtensor_from_ggml(dtype, self.data, self.dims.clone(), device)
    }

    fn to_dense(&self, device: &Device) -> Option<candle_core::Result<Tensor>> {
        let dtype = match self.dtype {
            TensorType::F32 => DType::F32,
            TensorType::F16 => DType::F16,
            TensorType::Bf16 => DType::BF16,
            _ => return None,
        };
        Some(Tensor::from_raw_buffer(self.data, dtype, &self.dims, device))
    }
}

fn each<const N: usize>(bytes: &[u8], convert: impl Fn([u8; N]) -> f32) -> Vec<f32> {
    let (chunks, _) = bytes.as_chunks::<N>();
    chunks.iter().map(|chunk| convert(*chunk)).collect()
}
