//! A record's headers. The binding's reader of them panics over a name that is not UTF-8, which any producer but
//! Java's may write.

#![allow(
    unsafe_code,
    reason = "calls librdkafka's C interface: what it lends is read while the message is borrowed"
)]

use std::ffi::CStr;
use std::{iter, ptr, slice};

use rdkafka::bindings::{rd_kafka_header_get_all, rd_kafka_message_headers};
use rdkafka::message::BorrowedMessage;
use rdkafka::types::RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR;

/// Names and values, in their order. There are none where they cannot be read.
pub fn of<'a>(message: &'a BorrowedMessage<'_>) -> impl Iterator<Item = (&'a [u8], Option<&'a [u8]>)> {
    let mut headers = ptr::null_mut();
    // SAFETY: the message lives, and owns the list that it hands out.
    let error = unsafe { rd_kafka_message_headers(message.ptr(), &mut headers) };
    let mut next = 0;
    iter::from_fn(move || {
        if error != RD_KAFKA_RESP_ERR_NO_ERROR {
            return None;
        }
        let (mut name, mut value, mut length) = (ptr::null(), ptr::null(), 0);
        // SAFETY: the list lives as long as the message, which 'a borrows. Where there is a header of this number, its
        // name ends with a zero, and its value, if it has one, is of the length said; both belong to the list.
        unsafe {
            let error = rd_kafka_header_get_all(headers, next, &mut name, &mut value, &mut length);
            next += 1;
            (error == RD_KAFKA_RESP_ERR_NO_ERROR).then(|| {
                let value = (!value.is_null()).then(|| slice::from_raw_parts(value.cast::<u8>(), length));
                (CStr::from_ptr(name).to_bytes(), value)
            })
        }
    })
}
